#!/usr/bin/env bash
# Brings up a SLURM of its own on this machine, for tests: a controller and three nodes on the
# loopback address, with accounting, a partition whose jobs are pre-empted (main) and one whose jobs
# pre-empt them (urgent). Needs Debian or Ubuntu; as root it installs the packages, otherwise they
# must be there. Writes nothing outside of the folder that it is given.
#
#   bash slurm_up.sh FOLDER   # then: . FOLDER/env.sh
#   bash slurm_down.sh FOLDER
set -euo pipefail
home=${1:?the folder to keep its files in; a short path}
port=${SLURM_TEST_PORT:-26817}
export PATH=$PATH:/usr/sbin:/sbin
[ ! -e "$home/pids" ] || { echo "$home/pids: it is up already; end it with slurm_down.sh" >&2; exit 1; }

declare -A package=([munged]=munge [slurmctld]=slurmctld [slurmd]=slurmd [sbatch]=slurm-client
  [slurmdbd]=slurmdbd [mariadbd]=mariadb-server-core [mariadb]=mariadb-client-core)
missing=()
for program in "${!package[@]}"; do
  command -v "$program" >/dev/null || missing+=("${package[$program]}")
done
compgen -G "/usr/lib/*/slurm-wlm/accounting_storage_mysql.so" >/dev/null \
  || missing+=(slurm-wlm-mysql-plugin)
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || { echo "needed: apt-get install ${missing[*]}" >&2; exit 1; }
  echo "installing ${missing[*]}" >&2
  policy=/usr/sbin/policy-rc.d  # Debian starts daemons when it installs them, unless told not to
  made=; [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; made=1; }
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
  [ -z "$made" ] || rm -f $policy
fi

mkdir -p "$home"/{state,log,run,db,munge,spool/n1,spool/n2,spool/n3}
chmod 755 "$home"; chmod 711 "$home/munge"
(umask 077; head -c 1024 /dev/urandom >"$home/munge/key")
me=$(id -un)
host=$(hostname -s)
cat >"$home/slurm.conf" <<CONF
ClusterName=trial
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$home/munge/sock,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool/%n
SlurmctldPidFile=$home/run/slurmctld.pid
SlurmdPidFile=$home/run/%n.pid
SlurmctldLogFile=$home/log/slurmctld.log
SlurmdLogFile=$home/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmdTimeout=15
MessageTimeout=10
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 2))
AccountingStoragePass=$home/munge/sock
NodeName=n[1-3] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 11))-$((port + 13))] CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
(umask 077; cat >"$home/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$home/munge/sock
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 2))
SlurmUser=$me
LogFile=$home/log/slurmdbd.log
PidFile=$home/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 3))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
CONF
)
echo "export SLURM_CONF=$home/slurm.conf PATH=\$PATH:/usr/sbin" >"$home/env.sh"
export SLURM_CONF=$home/slurm.conf
: >"$home/pids"

note() {  # a process with its start time, so that slurm_down.sh never ends another one of its number
  echo "$1 $2 $(sed 's/.*) //' "/proc/$2/stat" | cut -d' ' -f20)" >>"$home/pids"
}
patiently() {  # until a command succeeds
  for _ in $(seq 300); do timeout 5 "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done
  echo "gave up waiting for: $*; see $home/log" >&2; return 1
}

munged --key-file="$home/munge/key" --socket="$home/munge/sock" --num-threads=2 \
  --pid-file="$home/run/munged.pid" --log-file="$home/log/munged.log" --seed-file="$home/munge/seed"
patiently test -s "$home/run/munged.pid"; note munged "$(cat "$home/run/munged.pid")"

if [ ! -d "$home/db/mysql" ]; then
  mariadb-install-db --no-defaults --datadir="$home/db" --user="$me" --skip-test-db \
    --auth-root-authentication-method=normal >"$home/log/mariadb-install.log" 2>&1
fi
cat >"$home/init.sql" <<SQL
CREATE DATABASE IF NOT EXISTS slurm_acct;
CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY 'slurm';
GRANT ALL ON slurm_acct.* TO 'slurm'@'localhost';
SQL
setsid mariadbd --no-defaults --datadir="$home/db" --user="$me" --socket="$home/run/db.sock" \
  --pid-file="$home/run/mariadbd.pid" --bind-address=127.0.0.1 --port=$((port + 3)) \
  --innodb-buffer-pool-size=32M --innodb-log-file-size=8M --innodb-lock-wait-timeout=900 \
  --performance-schema=off --init-file="$home/init.sql" >"$home/log/mariadbd.log" 2>&1 </dev/null &
note mariadbd $!
patiently mariadb --no-defaults -h127.0.0.1 -P$((port + 3)) -uslurm -pslurm -e 'select 1' slurm_acct

slurmdbd
patiently test -s "$home/run/slurmdbd.pid"; note slurmdbd "$(cat "$home/run/slurmdbd.pid")"
patiently sacctmgr -n list cluster
sacctmgr -i add cluster trial >/dev/null 2>&1 || true

slurmctld
patiently test -s "$home/run/slurmctld.pid"; note slurmctld "$(cat "$home/run/slurmctld.pid")"
patiently sinfo
for node in n1 n2 n3; do
  slurmd -N $node
  patiently test -s "$home/run/$node.pid"; note $node "$(cat "$home/run/$node.pid")"
done
patiently bash -c '[ "$(sinfo -h -p main -t idle -o %D)" = 3 ]'
sinfo >&2
