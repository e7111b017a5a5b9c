#!/bin/sh
# ResNet-18 with ImageNet weights, fine-tuned on a folder of photographs: fine_tune_resnet.sh FOLDER [KEY=VALUE]...
folder=${1:?"Name a folder with a folder of photographs for each class."}
shift
exec linnaeus train "$folder" model=resnet18 pretrained=true budget=10m "$@"
