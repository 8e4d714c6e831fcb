"""View-models: what a picture shows, worked out without a browser and without JAX."""
