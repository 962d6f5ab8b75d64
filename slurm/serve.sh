# Sourced by the batch scripts that serve, in place of common.sh: the gateway beside the job's first task, and their end.
#
# Arguments of sbatch that begin with serve. are the gateway's, all others the pipeline's. The gateway listens for people
# at 127.0.0.1 of the first node unless serve.host says otherwise. Whoever may come in knows the token, which is made
# here, into a file that only its owner can read: no secret stands on a command line or in the job's output.
gateway=() pipeline=() told_host=''
for argument in "$@"; do
    case $argument in
    serve.host=*) gateway+=("$argument") told_host=yes ;;
    serve.*) gateway+=("$argument") ;;
    *) pipeline+=("$argument") ;;
    esac
done
# What pictures are made for comes with each session.
set -- sink.video=null sink.session=of-each-stream sink.trace=none ${pipeline[@]+"${pipeline[@]}"}
source "${EVERFRAME_HOME:-$SLURM_SUBMIT_DIR}/slurm/common.sh"

mkdir -p "$(dirname "$folder")"
secrets=$(mktemp -d "$folder.secrets.XXXXXX") # of mode 700, and of a name that common.sh takes for nobody's folder
trap 'rm -rf "$secrets"' EXIT
# Ports that Ray's nodes leave free, see serve_ray.sbatch.
port=$((EVERFRAME_PORT + 1)) link_port=$((EVERFRAME_PORT + 65))
(
    umask 077
    openssl rand -hex 16 >"$secrets/token"
    openssl rand -hex 16 >"$secrets/join"
    printf 'tcp://%s:%s/%s\n' "$first_address" "$link_port" "$(<"$secrets/join")" >"$secrets/control"
)
# A session has no state to go on from: who is cut off opens another.
overrides+=(stream.save_on_stop=false "control=@$secrets/control")

# The end of a process, whatever signals come meanwhile; its exit code.
ended() {
    while kill -0 "$1" 2>/dev/null; do
        wait "$1" || true
    done
    wait "$1"
}

# Tell the gateway to end, once: a second signal would end it with sessions under way.
server='' drained=''
drain() {
    if [[ ! $drained ]]; then
        drained=yes
        kill -TERM "$server" 2>/dev/null || true
    fi
}

# Run the gateway, and the pipeline as a job step that joins it. Who ends first ends the other: without a pipeline there is
# nothing to serve, and a pipeline whose gateway goes drains. When the time is nearly over (--signal=B:USR1@SECONDS), or at
# SIGTERM, the gateway lets nobody more in and gives sessions serve.drain_s.
serve() {
    local step
    (
        umask 077
        # Its address, with the token, is for the owner's eyes; its log goes to the job's output.
        exec python -m launch.serve serve.join=1 "serve.join_secret=@$secrets/join" "serve.token=@$secrets/token" \
            "serve.link_host=$first_address" "serve.link_port=$link_port" "serve.port=$port" "output_dir=$folder.gateway" \
            ${gateway[@]+"${gateway[@]}"} >"$secrets/address"
    ) &
    server=$!
    "$@" &
    step=$!
    trap drain USR1 TERM
    echo "serving on $first; the address, with its token, will be in $secrets/address"
    if [[ ! $told_host ]]; then
        echo "from elsewhere: ssh -N -L $port:127.0.0.1:$port $first"
    fi
    while kill -0 "$server" 2>/dev/null && kill -0 "$step" 2>/dev/null; do
        wait -n "$server" "$step" || true
    done
    drain
    ended "$server" || code=$?
    ended "$step" || code=$?
    trap '' USR1 TERM
}
