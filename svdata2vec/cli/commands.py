"""All commands of `svdata2vec`, by the words that name them."""

from svdata2vec.cli import runs
from svdata2vec.cli.benchmarks import BENCH
from svdata2vec.cli.datasets import SHARD, InspectOptions, VerifyOptions, run_inspect, run_verify
from svdata2vec.cli.options import FITS, GENERAL_PRESET, Command, Group, Later, preset_commands
from svdata2vec.config.label_efficiency import LABEL_EFFICIENCY
from svdata2vec.config.presets import FINETUNE, PRETRAIN
from svdata2vec.config.probe import PROBE

COMMANDS = Group(
    "self-supervised pretraining on video + skeletons", "command",
    {
        "shard": SHARD,
        "verify": Command("check packed shards", run_verify, VerifyOptions),
        "inspect": Command("pictures of what the model sees", run_inspect, InspectOptions),
        "pretrain": preset_commands(
            "self-supervised pretraining on video + skeletons", Later("training.pretrain:pretrain"), PRETRAIN,
            fits=FITS,
        ),
        "finetune": preset_commands(
            "train a classifier, from a pretraining run or from scratch", Later("training.finetune:finetune"), FINETUNE,
            fits=FITS,
        ),
        "evaluate": Command("accuracies of a classifier, its confusions", runs.run_evaluate, runs.EvaluateOptions),
        "probe": preset_commands(
            "linear, attentive and nearest-neighbour probes of a pretraining run's features", runs.run_probe, PROBE,
            fits=FITS,
        ),
        "label-efficiency": preset_commands(
            "accuracy over the share of labels, over seeds", Later("studies.label_efficiency:label_efficiency"),
            LABEL_EFFICIENCY, fits={GENERAL_PRESET: Later("studies.label_efficiency:fit")},
        ),
        "embed": Command("features of a split, to a file", runs.run_embed, runs.EmbedOptions),
        "predict": Command("top classes of a video file", runs.run_predict, runs.PredictOptions),
        "convert": Command("a checkpoint of the authors' code -> a finished run", runs.run_convert, runs.ConvertOptions),
        "export": Command("the RGB classifier for other programs (torch.export, ONNX)", runs.run_export, runs.ExportOptions),
        "bench": BENCH,
        "report": Command("one HTML page about runs", runs.run_report, runs.ReportOptions),
    },
)
