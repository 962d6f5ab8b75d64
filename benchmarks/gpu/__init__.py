"""A GPU in minutes: what must be right there (`correct`) and how fast it is (`speed`), one table each.

`python -m benchmarks.gpu correct --seconds 150`, then `python -m benchmarks.gpu speed --seconds 300`. Needs torch,
numpy and safetensors. Rows are data; a child process runs them in order of worth and writes every finished one to a
file at once. Its parent never touches the device: it ends the child in time, and starts another where one has died.
"""
