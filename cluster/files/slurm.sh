#!/usr/bin/env bash
# A Ray cluster for one command within a Slurm allocation: sbatch slurm.sh train --recipe ffdnet_d2sm ...
# The project must be installed in an environment that all nodes see; data.root and train.storage as well.

# Shown by squeue. If omitted: the script's name.
#SBATCH --job-name=d2sm
# Machines: one is the head and works as well. If omitted: one.
#SBATCH --nodes=2
# One Ray node a machine. If omitted: one task a core, each a Ray node of its own.
#SBATCH --ntasks-per-node=1
# No other jobs on these machines: Ray's ports are fixed below. If omitted: another user's cluster may hold them.
#SBATCH --exclusive
# What each machine brings. If omitted: one core, no GPU.
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
# If omitted: the partition's own limit.
#SBATCH --time=48:00:00
# Ctrl-C for the command ten minutes before the time is up: it keeps its last checkpoint, and the same command with the
# same train.name goes on from it. If omitted: killed without a word.
#SBATCH --signal=B:INT@600
# If omitted: slurm-<id>.out, the same.
#SBATCH --output=slurm-%j.out

set -euo pipefail
set -m # without it, a command in the background would ignore Ctrl-C

PORT=6379           # where nodes join the head
DASHBOARD_PORT=8265 # where jobs are sent, on the head's loopback alone
# The environment with the project in it. If omitted: whatever python is on the path.
[[ -z ${D2SM_ENV:-} ]] || source "$D2SM_ENV/bin/activate"

# Ray's token, in the home folder that all nodes see: other users of these machines cannot send code to the cluster.
# If omitted: they can.
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null
chmod 600 ~/.ray/auth_token

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(srun --nodes=1 --ntasks=1 -w "${hosts[0]}" hostname --ip-address | awk '{print $1}')
options=(--block --disable-usage-stats "--num-cpus=$SLURM_CPUS_PER_TASK" "--num-gpus=${SLURM_GPUS_ON_NODE:-0}")

srun --nodes=1 --ntasks=1 -w "${hosts[0]}" ray start --head --node-ip-address="$head" --port="$PORT" \
  --dashboard-host=127.0.0.1 --dashboard-port="$DASHBOARD_PORT" "${options[@]}" &
for _ in $(seq 60); do
  ray health-check --address "$head:$PORT" 2>/dev/null && break
  sleep 2
done
for host in "${hosts[@]:1}"; do
  srun --nodes=1 --ntasks=1 -w "$host" ray start --address="$head:$PORT" "${options[@]}" &
done

# The preflight counts the nodes that are there, so let them join first; after two minutes it says what is missing.
export RAY_ADDRESS="$head:$PORT"
end=$((SECONDS + 120))
until [[ $SECONDS -gt $end ]]; do
  joined=$(python -c 'import ray; ray.init(log_to_driver=False); print(len(ray.nodes()))' 2>/dev/null || echo 0)
  [[ $joined -ge ${#hosts[@]} ]] && break
done

python -m cluster.job_entrypoint -- "$@" &
verb=$!
trap 'kill -INT "$verb"' INT TERM
code=0
wait "$verb" || code=$?
# A trapped signal ends the first wait before the command has ended.
while kill -0 "$verb" 2>/dev/null; do
  code=0
  wait "$verb" || code=$?
done
# Ray's nodes end with the allocation.
exit "$code"
