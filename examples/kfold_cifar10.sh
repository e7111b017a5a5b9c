#!/bin/sh
# Five folds on CIFAR-10 with the first CNN of the textbooks, 5 epochs each: mean, spread, and an answer for every image.
exec linnaeus crossval cifar10 --folds 5 model=simple_cnn epochs=5 batch_size=64 optimizer=adam lr=0.001 \
    schedule=constant warmup=0 weight_decay=0 label_smoothing=0 ema=0 "$@"
