"""What people do wrong on the command line: arguments, the exit code, and a part of the sentence.

The commands run in a folder that :func:`prepare` fills. Add a row for every new option that can be misused.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

Mistake = tuple[str, int, str]  # arguments, exit code, a part of the sentence

WORDS = "--states states.txt --objects objects.txt"
TRAIN: list[Mistake] = [
    ("train", 2, "A dataset is missing"),
    ("train nowhere", 3, "There is no dataset 'nowhere'"),
    ("train ./nowhere", 3, "There is no dataset './nowhere'"),
    ("train mit-state", 3, "Did you mean 'mit-states'?"),
    ("train mit-states", 3, "refiner download mit-states"),
    ("train photos", 3, "refiner dataset create photos"),
    ("train empty", 3, "is not a dataset"),
    ("train states.txt", 3, "There is no dataset"),
    ("train data --method troiks", 2, "troika"),
    ("train data --backbone ViT-XXL", 3, "The backbone 'ViT-XXL' is unknown"),
    ("train data --backbone ViT-B-32 --pretrained opneai", 3, "is neither a weights file nor a tag"),
    ("train data --backbone ViT-B-32 --pretrained openai=gone.pt", 3, "gone.pt does not exist"),
    ("train data --backbone ViT-B-32 --pretrained states.txt", 3, "states.txt"),
    ("train data --device gpu", 2, "The device 'gpu' is unknown"),
    ("train data --backbone tiny --device cuda:9", 6, "cuda:9 is not available"),
    ("train data --precision fp8", 2, "precision"),
    ("train data --epochs 0", 2, "--epochs"),
    ("train data --epochs two", 2, "--epochs"),
    ("train data --batch-size 0", 2, "train.batch_size"),
    ("train data --lr 0", 2, "train.lr"),
    ("train data --lr nan", 2, "train.lr"),
    ("train data --workers -2", 2, "train.num_workers"),
    ("train data --seed -1", 2, "seed"),
    ("train data --seeds 0", 2, "--seeds"),
    ("train data --set train.lr", 2, "not of the form key=value"),
    ("train data --set train.lrr=1", 2, "Did you mean 'train.lr'?"),
    ("train data --set train.batch=1", 2, "now called 'train.batch_size'"),
    ("train data --set train.lr=fast", 2, "--set: train.lr = 'fast'"),
    ("train data --set train.augment=wild", 2, "train.augment"),
    ("train data --method clip --set model.queries_per_role=3", 2, "has no setting 'model.queries_per_role'"),
    ("train data --config gone.toml", 3, "gone.toml does not exist"),
    ("train data --config bad.toml", 3, "not valid TOML"),
    ("train data --config photos", 3, "photos"),
    ("train data --config unknown.toml", 3, "unknown.toml: unknown key 'train.rate'"),
    ("train data --out run", 2, "run exists already"),
    ("train data --out file", 2, "file"),
    ("train data --out file/run", 2, "cannot be written"),
    ("train data --resume", 2, "--out RUN"),
    ("train --resume --out gone", 3, "gone is not a run"),
    ("train --resume --out data", 3, "data is not a run"),
    ("train --resume --out run --lr 0.5", 2, "train.lr = 0.5"),
    ("train --resume --out run --seeds 2", 2, "--seeds"),
    ("train --resume --out run --dataset nowhere", 3, "There is no dataset 'nowhere'"),
    ("train data --resume --out run --dataset data", 2, "given twice"),
    ("train --resume --out run --dry-run", 2, "--dry-run"),
    ("train --resume --out run --labels labels.csv", 2, "--labels is for a new run"),
    (
        "train data --set train.eval_every=2 --set train.val_per_epoch=2",
        2,
        "train.val_per_epoch is 2 (--set)",
    ),
    ("train --resume --out run --on-error skip", 2, "--on-error"),
    ("train data --dataset data", 2, "--dataset needs --resume"),
    ("train data --on-error ignore", 2, "--on-error"),
    ("train data --dry-run --out run", 2, "run exists already"),
    ("train data --init gone", 3, "gone"),
    ("train run", 3, "refiner train --resume --out run"),
    ("train sorted/wet_tie/a.jpg", 3, "There is no dataset"),
    ("train data --method Refiner", 2, "the methods are refiner"),
    ("train data --set lr=1", 2, "Did you mean 'train.lr'?"),
    ("train ''", 2, "An argument is empty"),
]
EVALUATE: list[Mistake] = [
    ("eval", 2, "Give either a MODEL or --scores"),
    ("eval run --scores scores.npz", 2, "Give either a MODEL or --scores"),
    ("eval gone", 3, "There is no model at gone"),
    ("eval empty", 3, "empty"),
    ("eval photos", 3, "photos"),
    ("eval states.txt", 3, "states.txt"),
    ("eval tiny", 2, "needs --dataset"),
    ("eval tiny --dataset nowhere", 3, "There is no dataset 'nowhere'"),
    ("eval run --dataset photos", 3, "refiner dataset create photos"),
    ("eval run --world closed --feasibility mask", 2, "open world only"),
    ("eval run --feasibility-vectors v.txt", 2, "--feasibility mask or soft"),
    ("eval run --feasibility soft --feasibility-vectors gone.txt", 3, "gone.txt"),
    ("eval run --topk 0", 2, "--topk '0'"),
    ("eval run --topk 1,1", 2, "--topk '1,1'"),
    ("eval run --topk many", 2, "--topk 'many'"),
    ("eval run --split train", 2, "--split"),
    ("eval run --protocol new", 2, "--protocol"),
    ("eval run --bootstrap-samples 1", 2, "--bootstrap-samples"),
    ("eval run --batch 0", 2, "--batch"),
    ("eval run --device cuda:9", 6, "cuda:9 is not available"),
    ("eval run --device tpu", 2, "The device 'tpu' is unknown"),
    ("eval run --precision fp8", 2, "fp8"),
    ("eval --scores gone.npz", 3, "gone.npz does not exist"),
    ("eval --scores states.txt", 3, "not an .npz file"),
    ("eval --scores short.npz", 3, "holds no array 'truth'"),
    ("eval --scores scores.npz --dataset data", 2, "cannot be used with --scores"),
    ("eval --scores scores.npz --save-scores s.npz", 2, "--save-scores"),
    ("eval run --save-scores s.npz", 2, "--world closed"),
    ("eval run --world closed --save-scores s.txt", 2, "does not end in .npz"),
    ("eval run --report r.pdf", 2, "does not end in .html"),
    ("eval run --report folder.html", 2, "is a folder"),
    ("eval run --per-image file/rows.jsonl", 2, "cannot be written"),
    ("eval run --report x.html --per-image x.html", 2, "--per-image x.html"),
    ("compare run", 2, "At least two different runs"),
    ("compare run run", 2, "At least two different runs"),
    ("compare run gone", 3, "gone"),
    ("compare run gone.npz --world closed", 3, "gone.npz"),
    ("compare run scores.npz", 2, "A score file holds one world"),
    ("compare scores.npz other.npz --feasibility soft", 2, "--feasibility need a model"),
    ("compare run model --world closed --feasibility soft", 2, "open world only"),
    ("compare run model --format excel", 2, "--format"),
    ("compare tiny ViT-B-32", 2, "--dataset"),
    ("eval data", 3, "data is a dataset, not a model. Train on it: refiner train data"),
    ("eval scores.npz", 3, "scores.npz is a file, and a model is a folder"),
    ("compare run data", 3, "data is a dataset, not a model"),
    ("compare run model --dataset nowhere", 3, "There is no dataset 'nowhere'"),
]
PREDICT: list[Mistake] = [
    ("predict", 2, "MODEL"),
    ("predict run", 2, "PATH"),
    ("predict gone photos", 3, "There is no model at gone"),
    ("predict photos run", 2, "There is no image in run"),
    ("predict run gone", 3, "gone"),
    ("predict run empty", 2, "There is no image in empty"),
    ("predict run photos --include *.xyz", 2, "There is no image"),
    ("predict tiny photos", 2, "--states FILE and --objects FILE"),
    ("predict tiny photos --states states.txt", 2, "--objects"),
    ("predict run photos --pairs pairs.txt --states states.txt", 2, "--pairs already says"),
    ("predict run photos --states gone.txt", 3, "gone.txt"),
    ("predict run photos --states empty.txt", 3, "empty.txt"),
    ("predict run photos --states latin.txt", 3, "latin.txt"),
    ("predict run photos --states comma.txt", 3, "comma.txt"),
    ("predict run photos --pairs objects.txt", 3, "objects.txt"),
    ("predict run photos --states photos", 3, "photos"),
    ("predict run photos -o rows.xlsx", 2, "unknown format"),
    ("predict run photos -o rows", 2, "unknown format"),
    ("predict run photos -o file/rows.csv", 2, "cannot be written"),
    ("predict run photos -o mine.jsonl", 2, "nothing says how it was made"),
    ("predict run photos --json", 2, "-o FILE"),
    ("predict run photos --gallery page.html", 2, "-o FILE"),
    ("predict run photos -o r.csv --gallery r.csv", 2, "r.csv"),
    ("predict run photos -o r.csv --gallery page.txt", 2, "page.txt"),
    ("predict run photos -o r.csv --gallery folder.html", 2, "is a folder"),
    ("predict run photos -o r.csv --heatmaps file", 2, "file"),
    ("predict run photos -o r.csv --heatmaps photos", 2, "photos"),
    ("predict run photos --format csv -o r.jsonl", 2, "contradicts"),
    ("predict run photos --format parquet", 2, "-o FILE.parquet"),
    ("predict run photos --format yaml", 2, "--format"),
    ("predict run photos -o r.jsonl --wide", 2, "CSV only"),
    ("predict run photos --top-k 0", 2, "--top-k"),
    ("predict run photos --world wide", 2, "--world"),
    ("predict run photos --batch -1", 2, "--batch"),
    ("predict run photos --device cuda:9", 6, "cuda:9 is not available"),
    ("predict run photos --device gpu", 2, "The device 'gpu' is unknown"),
    ("predict run photos --precision int8", 2, "int8"),
    ("predict run photos --on-error ignore", 2, "--on-error"),
    (f"predict ViT-B-32:opneai photos {WORDS}", 3, "opneai"),
    (f"predict ViT-XXL photos {WORDS}", 3, "ViT-XXL"),
    ("predict data photos", 3, "data is a dataset, not a model"),
    ("predict run/run.json photos", 3, "run/run.json is a file, and a model is a folder"),
    ("predict ViT-l-14 photos", 3, "Did you mean ViT-L-14"),
    ("predict tinny photos", 3, "Did you mean tiny"),
    ("predict '' photos", 2, "An argument is empty"),
    ("predict run ''", 2, "An argument is empty"),
    ("predict run photos --out ''", 2, "An argument is empty"),
    ("predict run photos --states wet,burnt --objects apple,tie", 3, "Give a text file, one entry per line"),
    ("predict run photos --topk 3", 2, "--top-k"),
    ("predict run photos -o photos", 2, "photos holds other files"),
    ("predict run my photos", 3, "There is no file or folder my"),
]
INDEX: list[Mistake] = [
    ("index run photos", 2, "--out"),
    ("index gone photos -o new", 3, "There is no model at gone"),
    ("index run empty -o new", 2, "There is no image in empty"),
    ("index run photos -o file", 2, "file"),
    ("index run photos -o file/new", 2, "cannot be written"),
    ("index run photos -o new --devices cpu --engine ray", 2, "exclude each other"),
    ("predict run photos -o new/ --devices cpu --engine ray", 2, "exclude each other"),
    ("index run photos -o new --part-size 0", 2, "--part-size"),
    ("index run photos -o new --device cuda:9", 6, "cuda:9 is not available"),
    ("search gone query", 3, "There is no index at gone. Make one: refiner index MODEL PHOTOS -o gone"),
    ("search run query", 3, "run is not an index"),
    ("index run photos -o run", 2, "run exists already and is not an index"),
    ("search photos query", 3, "photos"),
    ("search photos", 2, "QUERY"),
    ("search photos query --like a.jpg", 2, "QUERY"),
    ("search photos query --top 0", 2, "--top"),
    ("search photos query --format xml", 2, "xml"),
    ("suggest gone", 3, "gone"),
    ("merge gone -o rows.csv", 3, "gone"),
]
DATA: list[Mistake] = [
    ("dataset create photos", 2, "--out"),
    ("dataset create gone --out new", 3, "gone"),
    ("dataset create photos --out new", 3, "none in a folder that names a pair"),
    ("dataset create empty --out new", 3, "empty"),
    ("dataset create photos --out photos/new", 2, "lies in the photo folder"),
    ("dataset create photos --out data", 2, "data"),
    ("dataset create photos --out file/new", 2, "cannot be written"),
    ("dataset create photos --out new --unseen-fraction 1", 2, "--unseen-fraction"),
    (
        "dataset create photos --out new --unseen-fraction 0.1 --unseen-pairs pairs.txt",
        2,
        "exclude each other",
    ),
    ("dataset create sorted --out new --unseen-pairs gone.txt", 3, "gone.txt"),
    ("dataset create states.txt --out new", 3, "states.txt"),
    ("dataset create things --out new", 3, "The folder names 'one', 'two' are not of the form"),
    ("dataset create sorted --out new", 3, "--all-train"),
    ("dataset create few --out new", 3, "--all-train"),
    ("dataset create data --out new", 3, "data is a dataset already"),
    ("dataset create table.csv --out new", 3, "1 of the 1 images listed does not exist, such as a.jpg"),
    ("dataset check run", 3, "refiner train --resume --out run"),
    ("dataset check nowhere", 3, "There is no dataset 'nowhere'"),
    ("dataset check photos", 3, "refiner dataset create photos"),
    ("dataset", 2, ""),
    ("download", 2, "A name is missing"),
    ("download mit-state", 2, "mit-states"),
    ("download demo --list --verify", 2, "exclude each other"),
    ("download demo --verify", 4, "demo"),
    ("download demo --out file", 2, "file"),
    ("download demo --from-archive gone.zip", 3, "gone.zip"),
    ("info nowhere", 3, "There is no dataset 'nowhere'"),
    ("info photos", 3, "refiner dataset create photos"),
    ("info run --html page.html", 2, "--html describes a dataset"),
    ("info tiny --html page.html", 2, "tiny is a backbone"),
    ("info data --html page.txt", 2, "page.txt"),
    ("info data --html folder.html", 2, "is a folder"),
    ("info data --html file/page.html", 2, "cannot be written"),
    ("demo --out photos", 2, "photos exists already"),
    ("demo --out file/new", 2, "cannot be written"),
    ("demo --seed -1", 2, "--seed"),
    ("demo --device gpu --out new", 2, "The device 'gpu' is unknown"),
]
OTHERS: list[Mistake] = [
    ("export run", 2, "no place to export to"),
    ("export data new", 3, "data is a dataset, not a model"),
    ("calibrate run --set train.lr=1", 2, "cannot be changed after training"),
    ("calibrate data", 3, "data is not a run"),
    ("merge photos -o rows.csv", 3, "photos holds no parts"),
    ("convert photos --to csv -o new.csv", 2, "photos"),
    ("evaluate run", 2, "Did you mean 'eval'?"),
    ("guide photos.md", 2, "Did you mean 'photos'?"),
    ("export gone new", 3, "There is no model at gone"),
    ("export run model", 2, "model exists already"),
    ("export run file/new", 2, "cannot be written"),
    ("export run new --dtype int8", 2, "--dtype"),
    ("export run new --private", 2, "--private needs --push"),
    ("export run new --eval states.txt", 3, "refiner eval"),
    ("config --method troiks", 2, "troika"),
    ("config --recipe nothing", 2, "nothing"),
    ("config --recipes --recipe own", 2, "give one of them"),
    ("config --config gone.toml", 3, "gone.toml does not exist"),
    ("config --set seed", 2, "key=value"),
    ("guide photo", 2, "Did you mean 'photos'?"),
    ("runs gone", 3, "There is no folder gone"),
    ("runs file", 3, "file"),
    ("bench nothing", 2, "nothing"),
    ("bench --rounds 0", 2, "--rounds"),
    ("bench text --precision fp8", 2, "--precision"),
    ("bench text --backbone ViT-XXL", 3, "ViT-XXL"),
    ("bench text --spaces nothing", 2, "nothing"),
    ("", 2, ""),
    ("trian data", 2, "trian"),
    ("--debgu doctor", 2, "--debgu"),
]
MISTAKES = [*TRAIN, *EVALUATE, *PREDICT, *INDEX, *DATA, *OTHERS]


def prepare(folder: Path, dataset: Path, run: Path, model: Path) -> None:
    """Everything that the rows name and that exists, with links to a dataset, a run and an exported model."""
    photos = ("photos", "sorted/burnt_apple", "sorted/wet_tie", "things/one", "things/two", "few/wet_tie",
              "few/burnt_tie")  # fmt: skip
    for name in (*photos, "empty", "folder.html"):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate(photos):
        Image.new("RGB", (40, 40 + number), "red").save(folder / name / "a.jpg")
    for name, target in (("data", dataset), ("run", run), ("model", model)):
        (folder / name).symlink_to(target, target_is_directory=True)
    texts = {
        "file": "kept", "mine.jsonl": "mine\n", "states.txt": "burnt\nwet\n", "objects.txt": "apple\ntie\n",
        "pairs.txt": "burnt apple\nwet tie\n", "empty.txt": "", "comma.txt": "red,brown,green\n",
        "table.csv": "path,state,object\na.jpg,wet,tie\n", "bad.toml": "[train",
        "unknown.toml": "[train]\nrate = 1\n",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    (folder / "latin.txt").write_bytes("gefärbt\n".encode("latin-1"))
    pairs = np.array([0, 1])
    np.savez(folder / "scores.npz", scores=np.eye(2, dtype=np.float32), truth=pairs, seen=pairs == 0,
             pair_state=pairs, pair_object=pairs)  # fmt: skip
    np.savez(folder / "short.npz", scores=np.eye(2, dtype=np.float32), seen=pairs == 0)


def snapshot(*roots: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything below some folders."""
    found = {}
    for root in roots:
        for place, folders, files in os.walk(root):
            for name in (*folders, *files):
                path = Path(place, name)
                status = path.lstat()
                found[str(path)] = (0, 0) if path.is_dir() else (status.st_size, status.st_mtime_ns)
    return found
