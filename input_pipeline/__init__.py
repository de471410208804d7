import os

# Read by TensorFlow when it is first imported: errors only, and no notice about
# oneDNN, whose operations this package does not use.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
