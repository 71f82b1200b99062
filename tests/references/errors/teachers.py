"""Teachers without head or labels, and several at once."""

from references.errors.case import Case
from references.errors.shelf import DIGITS, DISTILL, pictures

HEADLESS = "--teacher teacher --teacher-options num_classes=0"
FLAT = {"has": ("teacher",), "make": lambda: pictures(".", ("flat",), 20)}
FEATURES = "fitnet, at, …"  # the methods in the order of their table

CASES = (
    Case(
        "without labels, a method on logits, and a teacher without logits",
        f"{DISTILL} {HEADLESS} --data flat --method kd",
        f"kd compares logits, and this teacher has none; choose {FEATURES}",
        **FLAT,
    ),
    Case(
        "a method that needs labels, on images without labels",
        f"{DISTILL} --teacher teacher --data flat --method dkd",
        f"dkd needs the labelled class, and these images have no labels; choose kd, dist, {FEATURES}",
        **FLAT,
    ),
    Case(
        "scratch, on images without labels",
        f"{DISTILL} --data flat --method scratch",
        f"scratch only uses labels, and these images have none; choose {FEATURES}",
        **FLAT,
    ),
    Case(
        "a linear probe, on images without labels",
        f"{DISTILL} {HEADLESS} --data flat --teacher-head probe",
        "teacher_head=probe trains a head on labels, and these images have none; leave it out",
        **FLAT,
    ),
    Case(
        "probe data without labels",
        f"{DISTILL} {HEADLESS} --data flat --probe-data flat",
        "probe_data flat has no labels: expected class folders, or another labelled set",
        **FLAT,
    ),
    Case(
        "probe data in a training with labels",
        f"{DISTILL} {DIGITS} --teacher teacher --probe-data digits",
        "probe_data evaluates a training without labels, and data digits has labels: leave out --probe-data, or ignore the "
        "labels with --unlabelled",
        **FLAT,
    ),
    Case(
        "a probe fitted on images without labels",
        "eval run --data flat --probe knn",
        "data flat has no labels to fit a probe on; name labelled images with --data",
        has=("run",),
        make=lambda: pictures(".", ("flat",), 20),
    ),
    Case(
        "a misspelt run folder as the teacher",
        f"{DISTILL} {DIGITS} --teacher teecher",
        "teacher: unknown model 'teecher': did you mean teacher? (`uhkd models` lists all; a run folder or "
        "local-dir:PATH also works)",
        has=("teacher",),
    ),
    Case(
        "a weight of the cross-entropy for one of several teachers",
        f"{DISTILL} {DIGITS} --teachers '{{teacher: teacher, weights: {{ce: 0.5}}}}'",
        "teachers.0.weights.ce: the cross-entropy belongs to no teacher; set it in the recipe's weights",
    ),
    Case(
        "both teacher and teachers",
        f"{DISTILL} {DIGITS} --teacher teacher --teachers '{{teacher: teacher}}'",
        "teachers: replaces teacher, and both are given; remove one",
    ),
    Case(
        "several teachers and a cache",
        f"{DISTILL} {DIGITS} --teacher a b --teacher-cache cache",
        "teacher_cache: contains the outputs of one teacher, and several are given; remove it",
    ),
    Case(
        "teacher_levels with several teachers",
        f"{DISTILL} {DIGITS} --teacher a b --teacher-levels layer1",
        "teacher_levels: names layers of one teacher, and several are given; set levels of each in teachers",
    ),
    Case(
        "a misspelt key of one of several teachers",
        f"{DISTILL} {DIGITS} --teachers '{{teacher: a, metod: kd}}'",
        "teachers.0.metod: unknown key; did you mean 'method'?",
    ),
)
