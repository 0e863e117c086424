from .config import ClassifyConfig as ClassifyConfig, Mode as Mode, classify_config as classify_config
from .embedding import (
    EmbeddingConfig as EmbeddingConfig,
    ScanFeatures as ScanFeatures,
    check_features_path as check_features_path,
    embedding_for as embedding_for,
    encode_scan as encode_scan,
    write_features as write_features,
)
from .heads import Classifier as Classifier, load_classifier as load_classifier
from .labels import (
    read_class_table as read_class_table,
    split_classes as split_classes,
    table_of_store as table_of_store,
    with_store_splits as with_store_splits,
)
from .results import interval as interval, score_rows as score_rows
from .run import Classification as Classification, ClassScans as ClassScans, classify as classify
