"""Post-training quantization of networks: models in 8 bits or fewer."""

from jaxdiff.quantization.calibration import Calibration
from jaxdiff.quantization.calibration import calibration_set
from jaxdiff.quantization.quantizer import fake_quant
from jaxdiff.quantization.quantizer import Quantizer
from jaxdiff.quantization.quantizer import search_range
from jaxdiff.quantization.rounding import learn_rounding
from jaxdiff.quantization.wrapper import Config
from jaxdiff.quantization.wrapper import layer_inputs
from jaxdiff.quantization.wrapper import quantize
from jaxdiff.quantization.wrapper import size_in_bytes

__all__ = [
  "Calibration",
  "Config",
  "Quantizer",
  "calibration_set",
  "fake_quant",
  "layer_inputs",
  "learn_rounding",
  "quantize",
  "search_range",
  "size_in_bytes",
]
