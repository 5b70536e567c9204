#!/usr/bin/env bash
# The whole pipeline on a data set that it makes: clips -> shards -> DALI -> pretraining -> fine-tuning -> report.
# A second run reuses what is there; `rm -r demo` starts over. DEMO chooses another folder.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
make_environment
demo="${DEMO:-demo}"
started=$SECONDS
say() { echo "== $1 ($((SECONDS - started)) s)"; }
run() { "$python" -m svdata2vec "$@"; }

say "making 600 short clips of moving figures"
"$python" tools/motion/make_motion_clips.py "$demo/clips" --clips 600 --seed 0
say "packing shards"
run shard pyskl "$demo/shards" --pickle-path "$demo/clips/motion.pkl" --videos "$demo/clips/videos" --size 96 --resume
say "pretraining on video + skeletons"
run pretrain demo --data.shards "$demo/shards" --run.out "$demo/pretrain"
say "fine-tuning on RGB, from scratch"
run finetune demo --data.shards "$demo/shards" --run.out "$demo/scratch"
say "fine-tuning on RGB, after pretraining"
run finetune demo --data.shards "$demo/shards" --run.out "$demo/pretrained" --from "$demo/pretrain"
say "writing the report"
run report "$demo/pretrain" "$demo/scratch" "$demo/pretrained" --out "$demo/report.html"
say "done"
echo "report: $demo/report.html"
"$python" tools/experiments/demo_summary.py "$demo"
