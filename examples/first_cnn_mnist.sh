#!/bin/sh
# The first CNN of the textbooks on MNIST: Adam, batches of 64, 5 epochs.
exec linnaeus train mnist model=simple_cnn epochs=5 batch_size=64 optimizer=adam lr=0.001 schedule=constant \
    warmup=0 weight_decay=0 label_smoothing=0 ema=0 shift=0 flip=false "$@"
