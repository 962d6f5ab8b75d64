# Sourced by the batch scripts: where a job finds Everframe, where its results go, how it ends.
#
#   EVERFRAME_ENV     a file to source, or a virtual environment to activate; default: .venv of the checkout, if any
#   EVERFRAME_HOME    the checkout; default: where sbatch was called
#   EVERFRAME_OUTPUT  folder of the results; default: outputs/slurm-JOB (with --array: .../TASK) in the checkout
#   EVERFRAME_RESTARTS  with launcher.recover=exact, how often torchrun starts ranks again when one is lost; default: 3
#   EVERFRAME_PORT    first of the ports this job listens on; default: by the job's number
set -euo pipefail

home=${EVERFRAME_HOME:-$SLURM_SUBMIT_DIR}
cd "$home"
environment=${EVERFRAME_ENV:-$home/.venv}
if [[ -f $environment ]]; then
    # shellcheck disable=SC1090
    source "$environment"
elif [[ -f $environment/bin/activate ]]; then
    # shellcheck disable=SC1091
    source "$environment/bin/activate"
elif [[ -n ${EVERFRAME_ENV:-} ]]; then
    echo "error: EVERFRAME_ENV=$EVERFRAME_ENV: neither a file nor a virtual environment; give one of the two" >&2
    exit 2
fi
export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

folder=${EVERFRAME_OUTPUT:-$home/outputs/slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${SLURM_ARRAY_TASK_ID:+/$SLURM_ARRAY_TASK_ID}

# Above Ray's own choice for workers and below what systems give to clients, 256 for a job: neighbours on shared nodes
# keep apart.
export EVERFRAME_PORT=${EVERFRAME_PORT:-$((20000 + 256 * (SLURM_JOB_ID % 48)))}

# The address at which the other nodes reach a node: SLURM's own, since a host may resolve its own name to 127.0.1.1.
address() {
    local name
    name=$(scontrol show node --oneliner "$1" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    getent ahostsv4 "$name" | awk 'NR == 1 { print $1 }'
}
export -f address

# A property of this job, as `scontrol show job` names it.
property() { scontrol show job --oneliner "$SLURM_JOB_ID" | sed -n "s/.* $1=\([^ ]*\).*/\1/p"; }

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
first_address=$(address "$first")
export first_address

# What launch.stream is told besides the arguments of sbatch; those come last and win.
overrides=("output_dir=$folder" stream.save_on_stop=true)
arguments=("$@")
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    # Task i runs the i-th job of the multirun that the arguments describe.
    list=$(python -m launch.sweep "$SLURM_ARRAY_TASK_ID" "$@")
    mapfile -t arguments <<<"$list"
fi
if compgen -G "$folder/state/chunk.*/state.json" >/dev/null || compgen -G "$folder/state/*/chunk.*/state.json" >/dev/null; then
    # This job ran before, and was cut or lost a node.
    overrides+=("resume=$folder")
fi
overrides+=("${arguments[@]}")
# Streams go on from their newest states then, so only a run that saves some loses little.
export restarts=0
for argument in "${overrides[@]}"; do
    if [[ $argument == launcher.recover=exact ]]; then
        restarts=${EVERFRAME_RESTARTS:-3}
    fi
done

# Run a command that ignores USR1, and so does all it starts, but for the stream itself: that drains, saves its state and
# ends. (SLURM starts the tasks of a step with signals as they are by default, so this is said in each.)
deaf() {
    trap '' USR1
    "$@"
}
export -f deaf

trap '' USR1
cut='' code=0 begun=$(mktemp)

# Run a job step to its end; when SLURM says that the time is nearly over (--signal=B:USR1@SECONDS), let it drain.
run() {
    local step
    "$@" &
    step=$!
    trap 'cut=yes' USR1
    while kill -0 "$step" 2>/dev/null; do
        if [[ $cut ]]; then
            # Again and again: a stream that was still loading has not heard the first.
            scancel --signal=USR1 "$SLURM_JOB_ID"
            sleep 5 &
            wait $!
        else
            wait "$step" || true
        fi
    done
    trap '' USR1
    wait "$step" || code=$?
}

# End the job, when nothing of it runs any more: with the step's exit code, or, if the time was too short and the job may
# (--requeue), back in the queue, from where it goes on from the state.
finish() {
    if [[ $code == 0 && ! $folder/report.json -nt $begun ]]; then
        echo "error: no report was left in $folder; see above" >&2
        code=1
    fi
    rm "$begun"
    if [[ $cut && $code == 0 && $(property Requeue) == 1 ]] && grep -q '^  "finished": false' "$folder/report.json"; then
        echo "cut by the time limit: back to the queue, to go on from the state"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
