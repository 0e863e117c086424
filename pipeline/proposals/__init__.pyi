from .config import ProposalConfig as ProposalConfig
from .proposal_set import (
    ALGORITHM_VERSION as ALGORITHM_VERSION,
    ProposalSet as ProposalSet,
    propose as propose,
)
