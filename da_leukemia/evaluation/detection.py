"""Average precision as COCO defines it, and a table that recomputes it for resampled fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from da_leukemia.evaluation.matching import judged, match
from da_leukemia.evaluation.records import FieldRecord, FloatArray, IntArray

MAX_DETECTIONS = 100
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class DetectionScores:
    """COCO scores; NaN where there is no true box to score.

    Attributes:
        ap50: mean over classes of the average precision at IoU 0.5.
        ap50_95: the same, mean over the ten IoU thresholds 0.50, 0.55 .. 0.95.
        recall: mean over classes of the share of cells found at IoU 0.5 by the 100 best
            detections of each field and class (the ceiling, whatever the score).
        ap50_per_class: by class name.
        ap_per_class: by class name, mean over IoU thresholds.
        truths_per_class: number of true boxes by class name.
        detections: number of detections that were judged (before the limit of 100).
    """

    ap50: float
    ap50_95: float
    recall: float
    ap50_per_class: Mapping[str, float]
    ap_per_class: Mapping[str, float]
    truths_per_class: Mapping[str, int]
    detections: int


def detection_metrics(
    records: Sequence[FieldRecord], classes: Sequence[str], labelled: Sequence[int]
) -> DetectionScores:
    """Score detections as pycocotools' ``COCOeval`` does for bbox, all areas, 100 detections.

    One pass of ``faster_coco_eval`` in memory. Classes without true boxes have no score and no
    part in a mean. What can not be judged is taken out before (see `judged`); boxes and
    detections of classes outside ``labelled`` take no part, as with ``params.catIds``.

    Args:
        records: fields in any order (it decides between equal scores).
        classes: names of all classes.
        labelled: indices of the classes to score.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    wanted = sorted(set(labelled))
    names = [classes[k] for k in wanted]
    fields = [judged(record) for record in records]
    images = [{"id": i} for i in range(1, len(fields) + 1)]
    categories = [{"id": k, "name": classes[k]} for k in wanted]
    truths = _annotations([f.true_boxes for f in fields], [f.true_labels for f in fields], wanted)
    found = _annotations(
        [f.boxes for f in fields], [f.labels for f in fields], wanted, [f.scores for f in fields]
    )
    counts = dict.fromkeys(names, 0)
    for truth in truths:
        counts[classes[truth["category_id"]]] += 1
    if not truths:
        nothing = dict.fromkeys(names, float("nan"))
        nan = float("nan")
        return DetectionScores(nan, nan, nan, nothing, dict(nothing), counts, len(found))

    truth_set, found_set = COCO(), COCO()
    for coco, boxes in ((truth_set, truths), (found_set, found)):
        coco.dataset = {"images": images, "categories": categories, "annotations": boxes}
        coco.createIndex()
    run = COCOeval_faster(truth_set, found_set, iouType="bbox", print_function=_silent)
    run.params.maxDets = [MAX_DETECTIONS]
    run.params.areaRng, run.params.areaRngLbl = [[0.0, 1e10]], ["all"]
    run.evaluate()
    run.accumulate()
    precision = np.asarray(run.eval["precision"])[:, :, :, 0, 0]
    recall = np.asarray(run.eval["recall"])[0, :, 0, 0]
    scored = precision[0, 0] > -1
    by_level = np.where(scored, precision.mean(axis=1), np.nan)
    ap50, ap = by_level[0], by_level.mean(axis=0)
    return DetectionScores(
        float(ap50[scored].mean()),
        float(ap[scored].mean()),
        float(recall[scored].mean()),
        dict(zip(names, ap50.tolist(), strict=True)),
        dict(zip(names, ap.tolist(), strict=True)),
        counts,
        len(found),
    )


def _silent(*_: object) -> None:
    """Swallow the progress messages of faster_coco_eval."""


def _annotations(
    boxes: Sequence[FloatArray],
    labels: Sequence[IntArray],
    wanted: Sequence[int],
    scores: Sequence[FloatArray] | None = None,
) -> list[dict[str, Any]]:
    """Return COCO annotations, ids from 1 (0 means "unmatched" in COCO)."""
    if not boxes:
        return []
    xyxy = np.concatenate(boxes).astype(np.float64)
    label = np.concatenate(labels)
    size = xyxy[:, 2:] - xyxy[:, :2]
    image = np.repeat(np.arange(1, len(boxes) + 1), [len(b) for b in boxes])
    kept = np.isin(label, wanted)
    columns = {
        "image_id": image[kept].tolist(),
        "category_id": label[kept].tolist(),
        "bbox": np.hstack([xyxy[:, :2], size])[kept].tolist(),
        "area": size.prod(axis=1)[kept].tolist(),
    }
    if scores is not None:
        columns["score"] = np.concatenate(scores).astype(np.float64)[kept].tolist()
    rows = zip(*columns.values(), strict=True)
    return [
        {"id": i, "iscrowd": 0, **dict(zip(columns, row, strict=True))}
        for i, row in enumerate(rows, start=1)
    ]


@dataclass(frozen=True)
class MatchTable:
    """Matched once, scored for any resample of the fields.

    COCO matches inside a field, so counting a field w times changes only the sums: `ap` is what
    COCO gives for a data set with w copies of that field side by side. Exactly so if the scores
    of a class are distinct within a field; of equal ones the first is counted w times before
    the second, where COCO would go copy by copy. Detections are stored by class, then falling
    score, then field; true positives by IoU threshold, then class, then falling score.

    Attributes:
        groups: group of each of the F fields.
        score: ``(M,)`` float32.
        correct: ``(M,)`` whether a true positive at IoU 0.5.
        field: ``(M,)`` index of the field.
        truths: ``(F, K)`` number of true boxes per field and scored class.
        class_start: ``(K,)`` first detection of each class.
        hit: ``(P,)`` index of the detection of each true positive.
        hit_class: ``(P,)`` its class, as a column of ``truths``.
        hit_segment: ``(P,)`` its threshold and class, ``threshold * K + class``.
    """

    groups: Sequence[str]
    score: FloatArray
    correct: NDArray[np.bool_]
    field: IntArray
    truths: IntArray
    class_start: IntArray
    hit: IntArray
    hit_class: IntArray
    hit_segment: IntArray

    @classmethod
    def build(cls, records: Sequence[FieldRecord], labelled: Sequence[int]) -> MatchTable:
        """Match all detections at the ten IoU thresholds (see `detection_metrics`)."""
        wanted = np.array(sorted(set(labelled)), dtype=np.int64)
        fields = [judged(record) for record in records]
        matches = match(fields, IOU_THRESHOLDS.tolist(), by_class=True, limit=MAX_DETECTIONS)
        no_label, no_score = np.zeros(0, np.int64), np.zeros(0, np.float32)
        label = np.concatenate([no_label, *(f.labels for f in fields)])[matches.detection]
        score = np.concatenate([no_score, *(f.scores for f in fields)])[matches.detection]
        order = np.lexsort((-score, label))
        order = order[np.isin(label[order], wanted)]
        column = np.searchsorted(wanted, label[order])
        level, hit = np.nonzero(matches.truth[:, order] >= 0)
        truths = np.array(
            [(f.true_labels[:, None] == wanted).sum(axis=0) for f in fields], dtype=np.int64
        ).reshape(len(fields), len(wanted))
        return cls(
            groups=tuple(f.group for f in fields),
            score=score[order].astype(np.float32),
            correct=matches.truth[0, order] >= 0,
            field=matches.field[order],
            truths=truths,
            class_start=np.searchsorted(column, np.arange(len(wanted))),
            hit=hit,
            hit_class=column[hit],
            hit_segment=level * len(wanted) + column[hit],
        )

    def ap(self, weights: IntArray) -> tuple[float, float]:
        """Return AP50 and AP50-95 when field f counts ``weights[f]`` times.

        The 101-point mean is taken over true positives only: each contributes the precision
        envelope there, times the number of recall thresholds that are first reached there.

        Args:
            weights: ``(F,)`` counts, 0 for a field that was not drawn.

        Returns:
            NaN, NaN where the resample has no true box.
        """
        truths = weights @ self.truths
        scored = truths > 0
        if not scored.any():
            return float("nan"), float("nan")
        classes = len(truths)
        segments = len(IOU_THRESHOLDS) * classes
        drawn = weights[self.field]
        before = np.append(0, np.cumsum(drawn))
        seen = before[self.hit + 1] - before[self.class_start][self.hit_class]
        cumulated = np.append(0, np.cumsum(drawn[self.hit]))
        start = np.searchsorted(self.hit_segment, np.arange(segments))
        found = cumulated[1:] - cumulated[start][self.hit_segment]

        precision = found / (seen + np.spacing(1))
        # A step of 2 between segments keeps one running maximum from crossing into the next.
        shift = 2.0 * (segments - self.hit_segment)
        envelope = np.maximum.accumulate((precision + shift)[::-1])[::-1] - shift
        recall = found / np.maximum(truths, 1)[self.hit_class]
        reached = np.searchsorted(RECALL_THRESHOLDS, recall, side="right")
        first = start[start < np.append(start[1:], len(self.hit))]
        gained = np.diff(reached, prepend=0)
        gained[first] = reached[first]
        area = np.bincount(self.hit_segment, envelope * gained, minlength=segments)
        ap = area.reshape(-1, classes)[:, scored] / len(RECALL_THRESHOLDS)
        return float(ap[0].mean()), float(ap.mean())

    def curve(self) -> FloatArray:
        """Return the precision reached at each of COCO's recall thresholds, ``(101,)``, at IoU 0.5.

        Mean over the classes that have a true box; its own mean is AP50.
        """
        truths = self.truths.sum(axis=0)
        ends = np.append(self.class_start[1:], len(self.score))
        curves = []
        for start, end, count in zip(self.class_start, ends, truths, strict=True):
            if not count:
                continue
            found = np.cumsum(self.correct[start:end])
            precision = found / np.arange(1, end - start + 1)
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            curves.append(envelope[np.searchsorted(found / count, RECALL_THRESHOLDS)])
        if not curves:
            return np.full(len(RECALL_THRESHOLDS), np.nan)
        mean: FloatArray = np.mean(curves, axis=0)
        return mean

    def statistic(self, weights: IntArray) -> dict[str, float]:
        """Return `ap` under the names of the result file."""
        ap50, ap50_95 = self.ap(weights)
        return {"ap50": ap50, "ap50_95": ap50_95}
