from .in_context import (
    EvaluationConfig as EvaluationConfig,
    Listener as Listener,
    evaluate_in_context as evaluate_in_context,
)
from .score_tables import NARROW_COLUMNS as NARROW_COLUMNS, TITLES as TITLES, Table as Table
from .scores import (
    MEASURES as MEASURES,
    Evaluation as Evaluation,
    Failed as Failed,
    Score as Score,
    plain as plain,
)
from .surfaces import UNKNOWN as UNKNOWN, surface_distances as surface_distances
