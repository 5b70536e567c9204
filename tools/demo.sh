#!/usr/bin/env bash
# The whole pipeline on a data set that it makes: clips -> shards -> DALI -> pretraining -> fine-tuning -> report.
# A second run reuses what is there; `rm -r demo` starts over. DEMO chooses another folder. Other sizes, each by a variable:
#   CLIPS (six tenths are for training), PRETRAIN_EPOCHS, LABELS (share of the labels), FINETUNE_EPOCHS, CNN_STEPS
set -euo pipefail
demo="${DEMO:+$(realpath -m "$DEMO")}"  # relative to the caller's folder
cd "$(dirname "$0")/.."
source tools/environment.sh
make_environment
demo="${demo:-demo}"
pretraining=(${PRETRAIN_EPOCHS:+--run.epochs "$PRETRAIN_EPOCHS"})
share="${LABELS:-0.025}"  # 36 clips, three of each class
tuning=(--label-fraction "$share" ${FINETUNE_EPOCHS:+--run.epochs "$FINETUNE_EPOCHS"})
small=(--fraction "$share" ${CNN_STEPS:+--steps "$CNN_STEPS"})
curve=tools/results/longer.json
started=$SECONDS
say() { echo "== $1 ($((SECONDS - started)) s)"; }
run() { "$python" -m svdata2vec "$@"; }

say "making short clips of moving figures"
"$python" tools/motion/make_motion_clips.py "$demo/clips" --clips "${CLIPS:-2400}" --seed 0
say "packing shards"
run shard pyskl "$demo/shards" --pickle-path "$demo/clips/motion.pkl" --videos "$demo/clips/videos" --size 96 --resume
say "pretraining on video + skeletons"
run pretrain demo --data.shards "$demo/shards" --run.out "$demo/pretrain" "${pretraining[@]}"
say "fine-tuning on RGB, after pretraining"
run finetune demo --data.shards "$demo/shards" --run.out "$demo/pretrained" --from "$demo/pretrain" "${tuning[@]}"
say "fine-tuning on RGB, from scratch, for as many multiply-adds as both together"
epochs=$("$python" tools/experiments/equal_compute.py "$demo/pretrain" "$demo/pretrained")
run finetune demo --data.shards "$demo/shards" --run.out "$demo/scratch" --label-fraction "$share" --run.epochs "$epochs"
say "a small CNN from scratch"
"$python" tools/experiments/small_cnn.py "$demo/shards" "${small[@]}" --json "$demo/small_cnn.json" --reuse
say "writing the report"
[ -f "$curve" ] && drawn=(--label-efficiency "$curve") || drawn=()
run report "$demo/pretrain" "$demo/scratch" "$demo/pretrained" --out "$demo/report.html" "${drawn[@]}"
say "done"
echo "report: $demo/report.html"
"$python" tools/experiments/demo_summary.py "$demo"
