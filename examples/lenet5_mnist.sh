#!/bin/sh
# LeNet-5 with stochastic gradient descent on MNIST.
exec linnaeus train mnist model=lenet5 epochs=10 batch_size=64 optimizer=sgd lr=0.05 momentum=0.9 nesterov=false \
    schedule=constant warmup=0 weight_decay=0 label_smoothing=0 ema=0 shift=0 "$@"
