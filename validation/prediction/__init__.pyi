from .calibration import Calibration as Calibration
from .calibration import calibrate as calibrate
from .quadratic import calibrated_quadratic as calibrated_quadratic
from .quadratic import observed_boundary as observed_boundary
from .quadratic import predict_regimes as predict_regimes
