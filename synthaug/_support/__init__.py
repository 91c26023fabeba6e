"""Tools that know nothing of images or diffusion: files, progress, devices, pages, differences."""
