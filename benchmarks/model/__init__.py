"""The full-size model on a GPU: steps, whole images, compiled steps, diffusers' pipeline and AOTInductor packages."""
