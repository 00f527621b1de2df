"""Files and images: model files of every supported container, metadata, PNG, labeled grids and plots."""
