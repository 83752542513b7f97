"""Networks that measure videos: a classifier and a frame network trained on the data set, I3D, VideoMAE and VGG."""
