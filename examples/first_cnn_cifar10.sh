#!/bin/sh
# The first CNN of the textbooks on CIFAR-10 with their augmentation: Adam, batches of 64, 10 epochs.
exec linnaeus train cifar10 model=simple_cnn epochs=10 batch_size=64 optimizer=adam lr=0.001 schedule=constant \
    warmup=0 weight_decay=0 label_smoothing=0 ema=0 rotate=15 shift=0.1 flip=true "$@"
