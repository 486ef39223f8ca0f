#!/bin/bash
# up.sh BASE : bring up a private multi-node Slurm cluster on this one machine, all state below BASE.
# Needs (Debian 12): slurm-wlm munge [slurmdbd mariadb-server when LAB_ACCT=1]; run as root.
# Idempotent: if a cluster is already up in BASE it says so and exits 0; stale state from a dead one is wiped.
# Then:   . BASE/env.sh      (sets SLURM_CONF, the only thing clients need)
# Knobs (environment): LAB_NODES=3 LAB_CPUS=8 LAB_MEM=16000 (MB) LAB_GPUS=2 (on all nodes but the last)
#   LAB_PORT=16800 (uses PORT..PORT+20)  LAB_ACCT=1 (slurmdbd+mariadb, real sacct; 0 = no sacct)
#   LAB_EXTRA='more slurm.conf lines' (a repeated key: the last one wins, with a warning in the log)
#   LAB_PROCTRACK=linuxproc (or cgroup where cgroup v1's freezer is mounted and writable, or pgid: +3 s a job)
#   LAB_SLURMD_TIMEOUT=10  LAB_MSG_TIMEOUT=5  LAB_KILLWAIT=5  LAB_CRED_EXPIRE=5
set -euo pipefail
BASE=${1:?usage: up.sh BASE}
mkdir -p "$BASE"; chmod 755 "$BASE"; BASE=$(cd "$BASE" && pwd -P)
NODES=${LAB_NODES:-3} CPUS=${LAB_CPUS:-8} MEM=${LAB_MEM:-16000} GPUS=${LAB_GPUS:-2}
PORT=${LAB_PORT:-16800} ACCT=${LAB_ACCT:-1}
PROCTRACK=${LAB_PROCTRACK:-linuxproc} MSG=${LAB_MSG_TIMEOUT:-5}
SDT=${LAB_SLURMD_TIMEOUT:-10} KILLWAIT=${LAB_KILLWAIT:-5} CRED=${LAB_CRED_EXPIRE:-5}
PIDS=$BASE/pids
trap 'echo "[up] FAILED at line $LINENO" >&2' ERR
t0=$(date +%s.%N)
say() { printf '[up %6.2fs] %s\n' "$(echo "$(date +%s.%N) $t0" | awk '{print $1-$2}')" "$*"; }
die() { say "FAILED: $*" >&2; exit 1; }
starttime() { local s; s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; s=${s##*) }; set -- $s; echo "${20}"; }
alive() { [ -n "${1:-}" ] && [ -n "${2:-}" ] && [ "$(starttime "$1" 2>/dev/null)" = "$2" ] && ! grep -q ') Z' "/proc/$1/stat"; }
start() { # name command...: run a daemon in the foreground of its own session; $! is then exactly its pid
  local name=$1; shift                                  # (pid files lie for a moment while a daemon forks)
  setsid "$@" > "$BASE/log/$name.out" 2>&1 < /dev/null &
  echo "$name $! $(starttime $!)" >> "$PIDS"            # + kernel start time, so down never hits a reused pid
  LAST=$! LASTNAME=$name
}
wait_up() { # seconds command...: until command succeeds, failing at once if the daemon started last has died
  local n=$(( $1 * 20 )); shift
  for ((i=0; i<n; i++)); do
    "$@" >/dev/null 2>&1 && return 0
    [ -d /proc/$LAST ] || die "$LASTNAME ended: see $BASE/log/$LASTNAME*"
    sleep 0.05
  done
  die "timed out waiting for $LASTNAME (logs in $BASE/log)"
}
[ ${#BASE} -le 70 ] || die "BASE path too long (a unix socket path holds 107 bytes)"
[ "$(id -u)" = 0 ] || die "run as root"

# --- already up? or left-overs?
if [ -s "$PIDS" ]; then
  up=0 n=0
  while read -r name pid st; do n=$((n+1)); alive "$pid" "$st" && up=$((up+1)); done < "$PIDS"
  if [ $up -eq $n ] && [ -e "$BASE/READY" ]; then say "already up in $BASE ($n daemons)"; exit 0; fi
  if [ $up -gt 0 ]; then die "$up of $n daemons of an earlier cluster still run in $BASE: run down.sh $BASE first"; fi
fi
for d in etc munge state spool log db dev; do rm -rf "${BASE:?}/$d"; mkdir -p "$BASE/$d"; done
rm -f "$BASE"/*.pid "$PIDS" "$BASE/READY"; : > "$PIDS"

bins="munged mungekey slurmctld slurmd sbatch scontrol"; [ "$ACCT" = 1 ] && bins="$bins slurmdbd sacctmgr mariadbd mariadb-install-db"
for b in $bins; do PATH=$PATH:/usr/sbin:/sbin command -v $b >/dev/null || die "no $b: apt-get install -y --no-install-recommends slurm-wlm munge slurmdbd mariadb-server"; done
export PATH=$PATH:/usr/sbin:/sbin
used=$(for f in /proc/net/tcp /proc/net/tcp6; do [ -r $f ] && while read -r _ l _ s _; do [ "$s" = 0A ] && echo $((16#${l##*:})); done < $f; done; true)
for ((p=PORT; p<=PORT+2+NODES; p++)); do grep -qx "$p" <<<"$used" && die "port $p is taken: set LAB_PORT"; done

# --- munge, with its own key, socket and log
SOCK=$BASE/munge/munge.sock
mungekey -c -k "$BASE/munge/munge.key"; chmod 600 "$BASE/munge/munge.key"
start munged munged --foreground --key-file="$BASE/munge/munge.key" --socket="$SOCK" --pid-file="$BASE/munge/munged.pid" \
  --log-file="$BASE/munge/munged.log" --seed-file="$BASE/munge/munged.seed" --num-threads=4
wait_up 10 munge -n -S "$SOCK"
say "munged up"

# --- configuration
{ cat <<CONF
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$SOCK,cred_expire=$CRED
CredType=cred/munge
StateSaveLocation=$BASE/state
SlurmdSpoolDir=$BASE/spool/%n
SlurmctldPidFile=$BASE/slurmctld.pid
SlurmdPidFile=$BASE/slurmd.%n.pid
SlurmctldLogFile=$BASE/log/slurmctld.log
SlurmdLogFile=$BASE/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
# no cgroups needed by any of these
ProctrackType=proctrack/$PROCTRACK
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
ReturnToService=2
# kill -9 of slurmd to node down*, measured (SlurmdTimeout,MessageTimeout): 3,2 10s; 10,2 15s; 10,5 17s; 3,10 25s; 10,10 25-28s; 30,10 46s; 60,5 79s
SlurmdTimeout=$SDT
MessageTimeout=$MSG
# job ids restart at 1 with every fresh StateSaveLocation; submitit keys its result files on them, so never reuse any
FirstJobId=$(( $(date +%s) % 600000 * 100 + 1 ))
KillWait=$KILLWAIT
JobRequeue=1
MinJobAge=300
JobCompType=jobcomp/filetxt
JobCompLoc=$BASE/log/jobcomp.txt
CONF
  if [ "$ACCT" = 1 ]; then cat <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT+1))
AccountingStoragePass=$SOCK
AccountingStorageTRES=gres/gpu
CONF
  else echo AccountingStorageType=accounting_storage/none; fi
  [ "$GPUS" -gt 0 ] && echo GresTypes=gpu
  for ((i=1; i<=NODES; i++)); do
    g=; [ "$GPUS" -gt 0 ] && { [ $i -lt $NODES ] || [ $NODES = 1 ]; } && g="Gres=gpu:$GPUS"
    echo "NodeName=n$i NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((PORT+2+i)) CPUs=$CPUS RealMemory=$MEM $g State=UNKNOWN"
  done
  echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
  [ -n "${LAB_EXTRA:-}" ] && printf '%s\n' "$LAB_EXTRA"
  true
} > "$BASE/etc/slurm.conf"
if [ "$PROCTRACK" = cgroup ]; then printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n'; fi > "$BASE/etc/cgroup.conf"
if [ "$GPUS" -gt 0 ]; then
  last=$((NODES-1)); [ $last -ge 1 ] || last=1
  for ((k=0; k<GPUS; k++)); do ln -s /dev/null "$BASE/dev/gpu$k"; done      # File= must be a character device: a link to one will do
  echo "NodeName=n[1-$last] Name=gpu File=$BASE/dev/gpu[0-$((GPUS-1))]" > "$BASE/etc/gres.conf"
fi
printf 'export SLURM_CONF=%s\n' "$BASE/etc/slurm.conf" > "$BASE/env.sh"
export SLURM_CONF=$BASE/etc/slurm.conf

# --- accounting: a private mariadbd on TCP 127.0.0.1 and slurmdbd
if [ "$ACCT" = 1 ]; then
  mariadb-install-db --no-defaults --user=root --datadir="$BASE/db/data" --skip-test-db \
    --auth-root-authentication-method=normal > "$BASE/log/mariadb-install.log" 2>&1 || die "mariadb-install-db: see $BASE/log/mariadb-install.log"
  say "database files made"
  start mariadbd mariadbd --no-defaults --user=root --datadir="$BASE/db/data" --socket="$BASE/db/sock" --pid-file="$BASE/db/pid" \
    --bind-address=127.0.0.1 --port=$((PORT+2)) --innodb-buffer-pool-size=32M --innodb-log-file-size=16M \
    --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 --skip-log-bin --performance-schema=OFF
  wait_up 30 mariadb --no-defaults -uroot --socket="$BASE/db/sock" -e 'select 1'
  mariadb --no-defaults -uroot --socket="$BASE/db/sock" -e "create database slurm_acct_db; create user slurm@127.0.0.1 identified by 'slurm'; create user slurm@localhost identified by 'slurm'; grant all on slurm_acct_db.* to slurm@127.0.0.1; grant all on slurm_acct_db.* to slurm@localhost"
  say "mariadbd up"
  cat > "$BASE/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$SOCK
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT+1))
SlurmUser=root
LogFile=$BASE/log/slurmdbd.log
PidFile=$BASE/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT+2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
  chmod 600 "$BASE/etc/slurmdbd.conf"
  start slurmdbd slurmdbd -D
  wait_up 30 sacctmgr -n list cluster
  sacctmgr -i add cluster lab > "$BASE/log/sacctmgr.log" 2>&1 || die "sacctmgr add cluster"
  say "slurmdbd up, cluster registered"
fi

# --- controller and node daemons
ctl_up() { scontrol ping | grep -q 'is UP'; }
start slurmctld slurmctld -D
wait_up 20 ctl_up
say "slurmctld up"
for ((i=1; i<=NODES; i++)); do
  mkdir -p "$BASE/spool/n$i"
  start slurmd.n$i env LAB_NODE=n$i slurmd -D -N n$i     # LAB_NODE: slurmstepds inherit it, so node.sh can tell whose they are
done
all_idle() { [ "$(sinfo -h -N -o '%N %T' | sort -u | grep -c ' idle$')" = "$NODES" ]; }   # a line for each partition
wait_up 60 all_idle
touch "$BASE/READY"
say "cluster up: $NODES nodes idle; . $BASE/env.sh"
