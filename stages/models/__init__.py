"""Model families, one folder each: `conf/model/*.yaml` names one as `family`.

| module | holds |
|---|---|
| `sizes` | `Sizes`, a `conf.schema.NetworkConfig`: what `model.network` may say; `published`, the sizes that a `config.json` tells; `check`, rules of the whole model |
| `network` | `Network`, with the face of `stages.denoise.network.Network` |
| `inputs` | `inputs(model)`: its conditions, a `stages.inputs.Input` each |
| `schedule` | `schedule(model)`: its passes and steps; without it those that the configuration's rules give |
| `keys` | `rename`, from names in a weight file to the network's; `FILES`, what such a file is told by |

`sizes`, `network` and `inputs` must be there.
"""  # noqa: E501
