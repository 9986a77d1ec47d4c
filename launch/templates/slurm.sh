#!/bin/bash
# One array of runs of a sweep, for sbatch. `python -m launch slurm` fills this template in (Jinja2); a site copies it,
# edits the copy and names it in the sweep file: `slurm: {template: our.sh}`. docs/cluster.md lists the names it may use.
#SBATCH --job-name={{ job_name }}
#SBATCH --array={{ array }}
#SBATCH --output="{{ folder }}/%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node={{ processes_per_node }}
{% if gpus_per_node %}
#SBATCH --gres=gpu:{% if gpu_type %}{{ gpu_type }}:{% endif %}{{ gpus_per_node }}
{% endif %}
{% for option in ("partition", "account", "qos", "constraint", "time") if slurm[option] %}
#SBATCH --{{ option }}={{ slurm[option] }}
{% endfor %}
{% if slurm.memory %}
#SBATCH --mem={{ slurm.memory }}
{% endif %}
{% if slurm.cpus_per_task %}
#SBATCH --cpus-per-task={{ slurm.cpus_per_task }}
{% endif %}
#SBATCH --requeue
#SBATCH --signal=USR1@{{ slurm.warning_seconds }}
{% for line in slurm.sbatch %}
#SBATCH {{ line }}
{% endfor %}

# The array's index is the run's line in runs.txt.
run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {{ quoted.runs }})
folder={{ quoted.output }}/runs/$run
restarts=${SLURM_RESTART_COUNT:-0}
cd {{ quoted.directory }} || exit 1
mkdir -p "$folder"

# What `launch status` reads: the job and how often it was restarted, and how it ended.
note() {
  printf '{"job": "%s_%s", "restarts": %d%s}\n' "$SLURM_ARRAY_JOB_ID" "$SLURM_ARRAY_TASK_ID" "$restarts" "$1" \
    > "$folder/.process.json" && mv "$folder/.process.json" "$folder/process.json"
}
note ""

{% for module in slurm.modules %}
module load {{ module }}
{% endfor %}
{% for name, value in quoted.environment %}
export {{ name }}={{ value }}
{% endfor %}
{% for line in slurm.setup %}
{{ line }}
{% endfor %}

# One task a GPU with the variables that torchrun would set: torchrun itself ends on SIGUSR1, and with 1 for any code.
{% if nodes == 1 %}
export MASTER_ADDR=127.0.0.1
{% else %}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
{% endif %}
export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES)) OLMO_SHARED_FS=1
{% if slurm.cpus_per_task %}
export SRUN_CPUS_PER_TASK={{ slurm.cpus_per_task }}  # srun does not take it from the job
{% endif %}
# After the first task ends the others have two minutes: those of a crashed run would wait for it much longer.
srun --kill-on-bad-exit=0 --wait=120 --open-mode=append --output="$folder/log.txt" \
{% for option in quoted.srun %}
  {{ option }} \
{% endfor %}
  bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID NODE_RANK=$SLURM_NODEID; exec "$@"' task \
  {% if slurm.container %}{{ slurm.container }} {% endif %}{{ quoted.python }} -m olmoe_parrots.train \
  {{ quoted.output }}/configs/"$run".yaml --try_load_latest_save=true
code=$?
note ", \"exit_code\": $code"

case $code in
  0)
    rm -f "$folder/failures.txt"
    exit 0 ;;
  2)  # bad input, told in the log: it would be told again
    exit 2 ;;
  75 | 138 | 143)  # it was asked to stop: it saved, or had not begun (killed by SIGUSR1 or SIGTERM)
    rm -f "$folder/failures.txt" ;;
  *)
    echo "$(date +%FT%T) exit code $code on $SLURM_JOB_NODELIST" >> "$folder/failures.txt"
    if [ "$(wc -l < "$folder/failures.txt")" -gt {{ slurm.max_failures }} ]; then
      echo "$run has failed {{ slurm.max_failures + 1 }} times in a row" >&2
      rm -f "$folder/failures.txt"
      exit "$code"
    fi ;;
esac
if [ "$restarts" -ge {{ slurm.max_restarts }} ]; then
  echo "$run was restarted $restarts times, and is not requeued again" >&2
  exit "$code"
fi
# not by SLURM_JOB_ID: that of an array's last task is the whole array's
scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" || exit "$code"
sleep 60  # Slurm ends this script as it puts the job back into the queue
exit "$code"
