#!/usr/bin/env bash
# Ends what slurm_up.sh started in a folder, and nothing else.
set -uo pipefail
home=${1:?the folder given to slurm_up.sh}
[ -e "$home/pids" ] || exit 0
. "$home/env.sh"
timeout 10 scancel --user="$(id -un)" 2>/dev/null
for _ in $(seq 100); do
  [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
  sleep 0.2
done
same() { [ "$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20)" = "$2" ]; }
tac "$home/pids" | while read -r _ pid start; do
  same "$pid" "$start" && kill -TERM "$pid"
  for _ in $(seq 100); do same "$pid" "$start" || break; sleep 0.1; done
  same "$pid" "$start" && kill -KILL "$pid"
done
rm -f "$home/pids"
exit 0
