"""The scores, for type checkers; `__init__.py` loads them lazily from here."""

from .activation import explained_variance as explained_variance
from .activation import output_energy as output_energy
from .activation import weight_times_input_norm as weight_times_input_norm
from .gradient import SmoothedSensitivity as SmoothedSensitivity
from .gradient import TripletSensitivity as TripletSensitivity
from .gradient import sensitivity as sensitivity
from .magnitude import balancing_rotation as balancing_rotation
from .magnitude import gate_entropy as gate_entropy
from .magnitude import norm_shares as norm_shares
from .magnitude import rank_magnitude as rank_magnitude
from .magnitude import update_svd as update_svd
from .penalty import orthogonality as orthogonality
from .schedule import cubic_decay as cubic_decay
from .schedule import cubic_fade as cubic_fade
from .select import keep_top as keep_top
from .select import keep_top_global as keep_top_global
from .select import lowest_mask as lowest_mask
from .select import share_held as share_held
from .select import units_that_fit as units_that_fit
from .select import until_share as until_share
from .threshold import hard_threshold as hard_threshold
from .threshold import soft_threshold as soft_threshold
