"""What the numbers say, as sentences. Every word follows from the matrix."""

from __future__ import annotations

from da_leukemia.report.gap import GapSummary, GapTable
from da_leukemia.sweep.matrix import Matrix
from da_leukemia.sweep.names import FAIR

METRIC_NAMES = {
    "ap50": "AP50",
    "ap50_95": "AP50-95",
    "recall": "Recall",
    "attribute_f1": "Attribute F1",
    "attribute_f1_end_to_end": "Attribute F1, end to end",
    "attribute_balanced_accuracy": "Attribute balanced accuracy",
    "ece": "Calibration error (ECE)",
    "attribute_f1_true_boxes": "Attribute F1 on true boxes",
    "attribute_ece": "Calibration error of attributes (ECE)",
    "ap50_without_none": "AP50 without none",
    "map50_as_released": "mAP50, as released",
    "attribute_f1_as_released": "Attribute F1, as released",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "macro_f1": "Macro-F1",
    "aurc": "Error over coverage (AURC)",
    "open_set_auroc": "Open-set AUROC",
}
METRIC_MEANINGS = {
    "ap50": "average precision at IoU 0.5, mean over cell types",
    "ap50_95": "average precision, mean over IoU 0.50 to 0.95 and over cell types",
    "recall": "share of cells found at IoU 0.5 by the 100 best detections of a field",
    "attribute_f1": "macro-F1 of the attributes of cells that were found",
    "attribute_f1_end_to_end": "macro-F1 of the attributes; a missed cell is a wrong answer",
    "attribute_balanced_accuracy": "mean recall over attribute values, of cells that were found",
    "ece": "mean gap between score and precision; lower is better",
    "attribute_f1_true_boxes": "macro-F1 of the attributes, read at the true boxes",
    "attribute_ece": "mean gap between probability and accuracy, of cells that were found; "
    "lower is better",
    "ap50_without_none": 'AP50 with the boxed artefacts ("none") ignored: 13 types, not 14',
    "map50_as_released": "as YOLOv5 computes it; to compare with AttriDet's published mAP50",
    "attribute_f1_as_released": "binary F1 of six attributes, a missed cell costs nothing; to "
    "compare with AttriDet's published F1",
    "balanced_accuracy": "mean recall over cell types",
    "accuracy": "share of cells that are named right",
    "macro_f1": "F1, mean over cell types",
    "aurc": "mean error over all shares of cells that could be answered, the surest first; lower "
    "is better",
    "open_set_auroc": "how well certainty tells known types from others; 0.5 is chance",
}


def metric_name(metric: str) -> str:
    """Return how a metric is written for people."""
    return METRIC_NAMES.get(metric, metric)


def metric_within(metric: str) -> str:
    """Return the same as a part of a sentence, without a capital that only begins one."""
    name = metric_name(metric)
    return name[:1].lower() + name[1:] if name[1:2].islower() else name


def reference_method(matrix: Matrix) -> str | None:
    """Return the source-only method that the others are measured against."""
    source_only = [m for m in matrix.methods if m not in matrix.adapted]
    return FAIR if FAIR in source_only else (source_only[0] if source_only else None)


def loss_sentence(matrix: Matrix, metric: str = "ap50") -> str | None:
    """Say what is lost between the same device and another one without adaptation."""
    method = reference_method(matrix)
    if method is None:
        return None
    view = matrix.view(method, metric)
    same, other = view.mean(same=True), view.mean(same=False)
    if same is None or other is None:
        return None
    same, other = round(same, 3), round(other, 3)  # so that the sentence adds up
    change = f"{same - other:.3f} is lost" if other < same else f"{other - same:.3f} is won"
    return (
        f"Without adaptation ({method}), {metric_within(metric)} is {same:.3f} on average on the "
        f"device it was trained on and {other:.3f} on another device: {change}."
    )


def gap_sentence(summary: GapSummary) -> str:
    """Say what one adapted method does to the gap."""
    pairs = f"{summary.whole} {'pair' if summary.whole == 1 else 'pairs'}"
    if summary.whole < summary.pairs:
        pairs += f" of {summary.pairs}, the others having no oracle"
    ratio = summary.ratio_of_means
    if ratio is None:
        gain = summary.mean_gain
        count = f"{summary.compared} {'pair' if summary.compared == 1 else 'pairs'}"
        won = "" if gain is None else f"{gain:+.3f} beside {FAIR} on average over {count}; "
        return f"{summary.method}: {won}no share of the gap can be given ({summary.reason})."
    if ratio >= 0:
        said = f"{summary.method} closes {100 * ratio:.0f} % of the gap to the oracle"
    else:
        said = f"{summary.method} widens the gap to the oracle by {-100 * ratio:.0f} %"
    harm = (
        f"it ends below {FAIR} in {summary.negative} of {summary.compared}"
        if summary.negative
        else f"it never ends below {FAIR}"
    )
    return f"{said} (ratio of means over {pairs}); {harm}."


def worst_sentence(summary: GapSummary) -> str:
    """Say where a method is weakest."""
    worst = summary.worst
    return (
        f"The weakest cell of {summary.method} is {worst.source} to {worst.target}: "
        f"{worst.adapted:.3f}."
    )


def headlines(matrix: Matrix, gap: GapTable) -> list[str]:
    """Return the sentences that stand at the top of a report, most important first."""
    if not matrix.rows:
        if matrix.unscored:
            return ["No device has labels to test on: there is no score, only label-free ones."]
        return ["There is no result yet."]
    loss = loss_sentence(matrix, gap.metric)
    ranked = sorted(
        gap.summaries,
        key=lambda s: (s.ratio_of_means is None, -(s.ratio_of_means or 0.0), s.method),
    )
    said = [loss] if loss else []
    said += [gap_sentence(summary) for summary in ranked]
    if gap.best is not None:
        said.append(worst_sentence(gap.best))
    return said
