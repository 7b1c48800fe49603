#!/bin/bash
# Calibrates shards with GNU parallel, here or over ssh, and prunes.
#   ./parallel.sh model.onnx small.onnx 0.6 shards/*.npz
#   HOSTS=a,b,c ./parallel.sh ...      files are copied there and back
set -euo pipefail
model=$1 output=$2 flops=$3
shift 3
jobs=${JOBS:-2}
threads=$(( $(nproc) / jobs > 0 ? $(nproc) / jobs : 1 ))
# A folder of its own for each run: what an earlier one left is not added up. Shards are numbered, so that equal
# names do not meet.
folder=$(mktemp -d statistics.XXXXXX)

remote=()
if [[ -n ${HOSTS:-} ]]; then
    remote=(--sshlogin "$HOSTS" --basefile "$model" --transferfile {} --return "$folder/{#}.safetensors" --cleanup)
fi
# --halt now,fail=1: a shard that fails stops the rest, instead of being left out silently.
parallel --jobs "$jobs" --halt now,fail=1 "${remote[@]}" \
    "mkdir -p '$folder' && onnx-prune calibrate '$model' --data {} --threads $threads --quiet -o '$folder/{#}.safetensors'" \
    ::: "$@"

parts=()
for (( i = 1; i <= $#; i++ )); do parts+=("$folder/$i.safetensors"); done
onnx-prune merge "${parts[@]}" -o "$folder/all.sum"
onnx-prune "$model" "$output" --stats "$folder/all.sum" --flops "$flops"
