#!/bin/bash
# Data preparation for sbatch: an array with a task for each source file, then one job that puts the dataset together.
# `python -m launch slurm-data` fills this template in (Jinja2) for both; a site copies it, edits the copy and names it
# with `--slurm template=our.sh`. docs/cluster.md lists the names it may use.
#SBATCH --job-name={{ job_name }}
{% if array %}
#SBATCH --array={{ array }}
#SBATCH --output="{{ folder }}/%A_%a.log"
{% else %}
#SBATCH --output="{{ folder }}/%j.log"
{% endif %}
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
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
#SBATCH --signal=B:USR1@{{ slurm.warning_seconds }}
{% for line in slurm.sbatch %}
#SBATCH {{ line }}
{% endfor %}

cd {{ quoted.directory }} || exit 1
{% for module in slurm.modules %}
module load {{ module }}
{% endfor %}
{% for name, value in quoted.environment %}
export {{ name }}={{ value }}
{% endfor %}
{% for line in slurm.setup %}
{{ line }}
{% endfor %}

# Near the time limit the command is ended, which loses nothing that is finished, and the job goes back into the queue.
again=
trap 'again=1; kill -TERM "$command" 2> /dev/null' USR1
{% if slurm.container %}{{ slurm.container }} {% endif %}{{ quoted.python }} -m data_prep \
  --processes "${SLURM_CPUS_PER_TASK:-1}" {{ quoted.arguments }}{% if array %} --file $((SLURM_ARRAY_TASK_ID + {{ first }})){% endif %} &
command=$!
wait "$command"
code=$?
if [ -n "$again" ]; then
  wait "$command"
  code=$?
fi
if [ -n "$again" ] && [ "$code" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt {{ slurm.max_restarts }} ]; then
  # not by SLURM_JOB_ID: that of an array's last task is the whole array's
  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}{% if array %}_$SLURM_ARRAY_TASK_ID{% endif %}" || exit "$code"
  sleep 60  # Slurm ends this script as it puts the job back into the queue
fi
exit "$code"
