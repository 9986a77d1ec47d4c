#!/bin/bash
# One array of runs of a sweep, for sbatch, started by torchrun: `slurm: {launcher: torchrun}`. `python -m launch slurm`
# fills this template in (Jinja2); a site copies it, edits the copy and names it in the sweep file:
# `slurm: {template: our.sh}`. docs/cluster.md lists the names it may use.
#SBATCH --job-name={{ job_name }}
#SBATCH --array={{ array }}
#SBATCH --output="{{ folder }}/%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node=1
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
#SBATCH --cpus-per-task={{ slurm.cpus_per_task * processes_per_node }}
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

{% if nodes == 1 %}
rendezvous=127.0.0.1
{% else %}
rendezvous=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
{% endif %}
rendezvous=$rendezvous:$((10000 + SLURM_JOB_ID % 20000))
export OLMO_SHARED_FS=1
{% if slurm.cpus_per_task %}
export SRUN_CPUS_PER_TASK={{ slurm.cpus_per_task * processes_per_node }}  # srun does not take it from the job
{% endif %}
# Each rank leaves its exit code here, which torchrun does not pass on.
codes=$folder/.ranks
rm -rf "$codes"
# The first node holds the rendezvous, whatever name it is called by (torchrun's --rdzv_conf).
# After the first node ends the others have two minutes: those of a crashed run would wait for it much longer.
srun --kill-on-bad-exit=0 --wait=120 --open-mode=append --output="$folder/log.txt" \
{% for option in quoted.srun %}
  {{ option }} \
{% endfor %}
  bash -c 'export PET_RDZV_CONF=is_host=$((SLURM_NODEID == 0)); exec "$@"' node \
  {% if slurm.container %}{{ slurm.container }} {% endif %}{{ quoted.python }} -m launch.torchrun_node "$codes" -- \
  --nnodes={{ nodes }} --nproc_per_node={{ processes_per_node }} \
  --rdzv_backend=c10d --rdzv_endpoint="$rendezvous" --rdzv_id="$SLURM_JOB_ID" \
  -m launch.torchrun_rank {{ quoted.output }}/configs/"$run".yaml --try_load_latest_save=true
code=$?
rm -rf "$codes"
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
