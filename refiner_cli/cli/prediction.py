"""What ``refiner predict`` does once its options are read: from places to rows, gallery and summary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from refiner_cli.cli.common import open_model
from refiner_cli.cli.console import PARTLY_DONE, terminal
from refiner_cli.cli.inputs import (
    find_images,
    local_paths,
    name_places,
    open_boxes,
    open_places,
    stop_with_saved_rows,
)
from refiner_cli.cli.outputs import HTML_SUFFIXES, OutputFile, check_output_folder, check_outputs
from refiner_cli.cli.prediction_rows import ProgressListener, open_writer, summarise
from refiner_cli.cli.preparation import EncodingOptions, name_model, prepare_recogniser
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.cli.predict_request import PredictRequest
    from refiner_cli.core.model_io.checkpoint import ModelInfo
    from refiner_cli.inference.destinations import Destinations
    from refiner_cli.inference.index import Index
    from refiner_cli.inference.output import RowCount
    from refiner_cli.inference.recogniser import Recogniser
    from refiner_cli.inference.runner import PredictOptions, RowSource
    from refiner_cli.inference.scan import ImageFile
    from refiner_cli.inference.verdicts import VerdictRule


def run_prediction(request: PredictRequest, *, as_json: bool) -> None:
    """Predict and report. Raises typer.Exit for an outcome that is not 0."""
    from refiner_cli.inference.destinations import Destinations
    from refiner_cli.inference.output import require_own_rows

    destinations = Destinations(request.out, request.gallery, request.heatmaps, request.keep_index)
    read = [file for file in (request.boxes, request.states, request.objects, request.pairs) if file]
    destinations.check([*local_paths(request.paths), *read])
    check_outputs([OutputFile("-o", request.out), OutputFile("--gallery", request.gallery, HTML_SUFFIXES)])
    if request.heatmaps:
        check_output_folder("--heatmaps", request.heatmaps)
    if request.out and not request.overwrite:
        require_own_rows(request.out)
    if request.keep_index:
        check_keeping(request)
    made, listener = predict_all(request, destinations)
    if as_json:
        terminal.json({"schema": "refiner.predict/1", "images": made.images, "errors": made.errors,
                       "new": listener.new, "dropped": made.dropped, "out": str(request.out)})  # fmt: skip
    else:
        terminal.note(summarise(request, made, listener))
    if made.errors:
        raise typer.Exit(PARTLY_DONE)


def predict_all(request: PredictRequest, destinations: Destinations) -> tuple[RowCount, ProgressListener]:
    """The rows there are now, and what this run did for them."""
    from refiner_cli.inference.formats import read_rows
    from refiner_cli.inference.gallery import write_gallery
    from refiner_cli.inference.indexing import check_made_by, open_for_writing
    from refiner_cli.inference.keeping import KeepingSource
    from refiner_cli.inference.output import Output
    from refiner_cli.inference.runner import (
        ImageSource,
        IndexSource,
        predict_to_output,
        predict_to_writer,
    )
    from refiner_cli.inference.scan import PathFilter
    from refiner_cli.inference.sources.places import Places

    index = index_of(request)
    images: Iterator[ImageFile] = iter(())
    total: Callable[[], int] = (lambda: index.images) if index else (lambda: 0)
    places = Places([])
    if not index:
        chosen = PathFilter(request.include, request.exclude, destinations.all())
        boxes = open_boxes(request.boxes, request.box_margin, request.box_confidence)
        places = open_places(request.paths, chosen, null=request.null, boxes=boxes)
        images, total = find_images(places, request.paths)
    recogniser, options, info = prepare_prediction(request)
    if index:
        check_made_by(index, recogniser)
    kept = None
    if request.keep_index:
        kept = open_for_writing(
            request.keep_index, recogniser, name_model(request.model), info.method,
            name_places(request.paths, places),
        )  # fmt: skip
    destinations.make_heatmap_folder()
    held = kept.locked() if kept else nullcontext()
    with stop_with_saved_rows(request.out), held, terminal.progress("predicting") as progress:
        listener = ProgressListener(
            progress, total, names_errors=request.out is None and request.rows == "table"
        )
        listener.show()
        photos = ImageSource(recogniser, images, places, options, terminal.note)
        source: RowSource = KeepingSource(photos, kept) if kept else photos
        if index:
            source = IndexSource(recogniser, index, options)
        if request.out is None:
            writer = open_writer(sys.stdout, request, recogniser.space)
            made = predict_to_writer(writer, source, options, listener)
        else:
            output = Output(request.out, options.top_k, wide=request.wide)
            made = predict_to_output(output, source, recogniser, options, listener)
    if places.boxes and places.boxes.used < len(places.boxes.by_image):
        missing = len(places.boxes.by_image) - places.boxes.used
        terminal.note(f"{missing:,} images of {request.boxes} are not among the given ones")
    if request.gallery and request.out:
        shown = write_gallery(
            request.gallery,
            f"Predictions, {request.out.name}",
            read_rows(request.out),
            source.locate,
            workers=options.workers,
        )
        terminal.note(f"gallery {request.gallery} ({shown} images)")
    return made, listener


def check_keeping(request: PredictRequest) -> None:
    """Raise UsageError if an index cannot be kept while predicting."""
    from refiner_cli.inference.index import is_index

    if request.heatmaps:
        raise UsageError("--keep-index and --heatmaps exclude each other.", hint="Run the command twice.")
    if request.boxes:
        raise UsageError(
            "An index keeps complete images, no boxes.", hint="Leave --keep-index or --boxes out."
        )
    if any(map(is_index, local_paths(request.paths))):
        raise UsageError("--keep-index needs images, not an index.")
    if request.keep_index:
        check_output_folder("--keep-index", request.keep_index)


def index_of(request: PredictRequest) -> Index | None:
    """The index that is predicted from, if the one PATH is an index. Raises UsageError for what it lacks."""
    from refiner_cli.inference.index import Index, is_index

    if not any(map(is_index, local_paths(request.paths))):
        return None
    if len(request.paths) > 1:
        raise UsageError("An index is predicted from alone.", hint="Give it as the only PATH.")
    if request.heatmaps or request.include or request.exclude or request.boxes:
        raise UsageError("--heatmaps, --boxes, --include and --exclude need the images, not an index.")
    index = Index.open(Path(request.paths[0]))
    if not index.images:
        raise UsageError(f"The index {index.folder} holds no image.", hint="Run 'refiner index' to its end.")
    return index


def prepare_prediction(request: PredictRequest) -> tuple[Recogniser, PredictOptions, ModelInfo]:
    """The model with its candidates, and how to run it."""
    from refiner_cli.inference.runner import PredictOptions
    from refiner_cli.inference.vocabulary import choose_space

    model, info = open_model(request.model, request.device)
    space = choose_space(
        model.space, request.world, request.states, request.objects, request.pairs, terminal.note
    )
    if request.heatmaps and not model.has_queries:
        raise UsageError("This model has no concept queries to draw.", hint="Leave --heatmaps out.")
    prepared = prepare_recogniser(
        model,
        space,
        EncodingOptions(request.precision, request.batch, request.workers, request.object_states),
    )
    prepared.recogniser.rule = verdict_rule(request, prepared.recogniser)
    options = PredictOptions(
        request.top_k,
        prepared.batch,
        prepared.workers,
        stop_at_error=request.stop_at_error,
        keep_errors=request.keep_errors,
        overwrite=request.overwrite,
        heatmaps=request.heatmaps,
    )
    return prepared.recogniser, options, info


def verdict_rule(request: PredictRequest, recogniser: Recogniser) -> VerdictRule | None:
    """What is sure enough to be said, if the command asks for verdicts; noted with where it comes from."""
    from refiner_cli.inference.verdicts import VerdictRule

    if request.min_probability is not None:
        return VerdictRule.of_probability(request.min_probability)
    if request.min_precision is None:
        return None
    model, space = recogniser.model, recogniser.space
    confidence = model.calibration.confidence(is_open=space.is_open)
    rule = VerdictRule.of_precision(confidence, request.min_precision)
    text = f"verdicts from these probabilities on: {rule}; right on validation in {request.min_precision:.0%}"
    if request.states or request.objects or request.pairs:
        text += ", with the model's own states and objects (yours have no labels to check it by)"
    terminal.note(text)
    return rule
