#!/bin/bash
# Calibrates shards with a Slurm array and prunes when all are done.
#   ./slurm.sh model.onnx 'shards/*.npz' small.onnx 0.6
# onnx-prune must be on PATH of the nodes; the folder must be shared.
set -euo pipefail
model=$1 shards=($2) output=$3 flops=$4
# A folder of its own for each run: what an earlier one left is not added up.
folder=$(mktemp -d statistics.XXXXXX)
printf '%s\n' "${shards[@]}" > "$folder/shards.txt"

array=$(sbatch --parsable --job-name=calibrate --array="1-${#shards[@]}" --cpus-per-task=8 --time=1:00:00 --wrap "
    shard=\$(sed -n \"\${SLURM_ARRAY_TASK_ID}p\" '$folder/shards.txt')
    srun onnx-prune calibrate '$model' --data \"\$shard\" --threads 8 --quiet \
        -o '$folder/'\$SLURM_ARRAY_TASK_ID.safetensors")

# afterok: a shard that fails stops the rest, instead of being left out silently.
sbatch --job-name=prune --dependency="afterok:$array" --cpus-per-task=8 --wrap "
    set -e
    onnx-prune merge \$(seq -f '$folder/%g.safetensors' ${#shards[@]}) -o '$folder/all.sum'
    onnx-prune '$model' '$output' --stats '$folder/all.sum' --flops $flops --json '$output.json' --report '$output.html'"
