"""Everything that is fitted, and how it is judged: scalers, models, engines, training, registry."""
