"""The engine process, on the device: input batch, model runner, sampler, models, weights."""
