#!/bin/sh
# A Slurm of one node, this machine, for the tests: `node.sh start DIR [dbd]` and `node.sh stop DIR`.
# Needs root and Debian's packages slurm-wlm and munge, with "dbd" slurmdbd and mariadb-server too.
# Everything it writes is under DIR; a Slurm of the machine's own is left alone.
set -eu
action=$1 dir=$2 accounting=${3:-}
export SLURM_CONF=$dir/slurm.conf
host=$(hostname -s)

stop() {
	for name in slurmd slurmctld slurmdbd sql/mariadbd; do
		if [ -f "$dir/$name.pid" ]; then kill "$(cat "$dir/$name.pid")" 2>/dev/null || true; fi
	done
}

if [ "$action" = stop ]; then
	stop
	exit 0
fi

mkdir -p "$dir/state" "$dir/spool"
if ! munge -n >/dev/null 2>&1; then
	mkdir -p /run/munge
	chown munge: /run/munge
	test -f /etc/munge/munge.key || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 2>/dev/null
	chown munge: /etc/munge/munge.key
	chmod 400 /etc/munge/munge.key
	runuser -u munge -- munged
fi

store=accounting_storage/none
if [ "$accounting" = dbd ]; then
	store=accounting_storage/slurmdbd
	mkdir -p "$dir/sql"
	chown -R mysql: "$dir/sql"
	chmod 755 "$dir"
	test -d "$dir/sql/mysql" || mariadb-install-db --user=mysql --datadir="$dir/sql" --skip-test-db >/dev/null
	setsid mariadbd --user=mysql --datadir="$dir/sql" --socket="$dir/sql/s" --port=17306 \
		--bind-address=127.0.0.1 --pid-file="$dir/sql/mariadbd.pid" 2>"$dir/mariadbd.log" &
	for _ in $(seq 100); do mariadb --socket="$dir/sql/s" -e "select 1" >/dev/null 2>&1 && break; sleep 0.2; done
	mariadb --socket="$dir/sql/s" -e "create user if not exists slurm@'127.0.0.1' identified by 'slurm';
		create user if not exists slurm@localhost identified by 'slurm';
		grant all on slurm_acct_db.* to slurm@'127.0.0.1'; grant all on slurm_acct_db.* to slurm@localhost"
	cat >"$dir/slurmdbd.conf" <<-END
		DbdHost=localhost
		DbdPort=17819
		SlurmUser=root
		AuthType=auth/munge
		StorageType=accounting_storage/mysql
		StorageHost=127.0.0.1
		StoragePort=17306
		StorageUser=slurm
		StoragePass=slurm
		StorageLoc=slurm_acct_db
		PidFile=$dir/slurmdbd.pid
		LogFile=$dir/slurmdbd.log
	END
	chmod 600 "$dir/slurmdbd.conf"
fi

cat >"$dir/slurm.conf" <<-END
	ClusterName=test
	SlurmctldHost=$host(127.0.0.1)
	SlurmctldPort=17817
	SlurmdPort=17818
	SlurmUser=root
	AuthType=auth/munge
	StateSaveLocation=$dir/state
	SlurmdSpoolDir=$dir/spool
	SlurmctldPidFile=$dir/slurmctld.pid
	SlurmdPidFile=$dir/slurmd.pid
	SlurmctldLogFile=$dir/slurmctld.log
	SlurmdLogFile=$dir/slurmd.log
	ProctrackType=proctrack/linuxproc
	TaskPlugin=task/none
	MpiDefault=none
	SlurmdParameters=config_overrides
	ReturnToService=2
	SelectType=select/cons_tres
	SelectTypeParameters=CR_Core_Memory
	SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
	DefMemPerCPU=500
	MaxArraySize=1001
	MinJobAge=60
	JobAcctGatherType=jobacct_gather/none
	AccountingStorageType=$store
	$(if [ "$accounting" = dbd ]; then printf 'AccountingStorageHost=localhost\nAccountingStoragePort=17819'; fi)
	NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
	PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PreemptMode=OFF
	PartitionName=short Nodes=ALL MaxTime=1 State=UP
END
if [ "$accounting" = dbd ]; then
	SLURM_CONF=$dir/slurm.conf slurmdbd
	# Its tables take a while the first time.
	for _ in $(seq 60); do sacctmgr -n show cluster >/dev/null 2>&1 && break; sleep 1; done
fi
slurmctld -c
slurmd -N "$host" || slurmd
for _ in $(seq 300); do
	sinfo -h -o %T 2>/dev/null | grep -q idle && exit 0
	sleep 0.2
done
echo "Slurm did not start; see $dir" >&2
tail -n 5 "$dir"/*.log >&2
stop
exit 1
