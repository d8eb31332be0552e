"""The schemes of quant/ driven over a checkpoint: `dsconv quantize`.

options           what is chosen, checked, and the defaults
plan              what will be written: the config, a job per parameter
target_range      which sizes a target of bits can reach
choose_bits       bits per matrix, where a target of bits is to be met
sensitivity       what it costs to round each matrix, by one backward pass
run               the run: prepare, write, seal
run_state         what the parts of a run share
inputs            what a calibrated run needs before its first layer: text and bits
rounding          without calibration: each parameter by itself
calibration       with calibration: layer by layer, on the inputs that really come
tune              then scales trained on the original's logits
writer            the weights that are written, and read back
journal           what is finished, so that a killed run goes on
matrix_report     how well a matrix was quantized
cost              bytes, memory and work of a run, as arithmetic
cost_model        how such a cost is put
calibration_cost  the same for calibration
work_rates        how fast this machine does each kind of work
"""
