"""Wrong command lines: each ends in one line that says what was wrong, what was expected, and the option as typed.

The status is 2 where the command cannot be read, and 1 where it can be read and not be done. Nothing is built,
downloaded or written before that is said: the hub is out of reach here.
"""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., int]

# what is typed after `vankit`: the status, and what the line says
TYPED: dict[str, tuple[int, str]] = {
    # commands
    "trian": (2, 'Unknown command "trian". Did you mean "train"?'),
    "--verion": (2, 'Unknown option "--verion". Did you mean "--version"? See vankit --help'),
    "predict -dash.png": (
        2,
        "Unknown option: -dash.png. -d is not a recognized option. The file of that name is ./-dash",
    ),
    "study nope": (2, 'Unknown command "nope". Available commands: decomposition, variants, ablation, compare.'),
    "train": (2, "DATA requires an argument. See vankit train --help"),
    "predict": (2, "IMAGES requires an argument. See vankit predict --help"),
    "validate": (2, "DATA requires an argument"),
    "inspect": (2, "DATA requires an argument"),
    "convert": (2, "SOURCE requires an argument"),
    "convert two.safetensors": (2, "TARGET requires an argument"),
    "train data extra": (2, "'extra' is one word too many. See vankit train --help"),
    "export van_b0.cifar10 extra": (2, "'extra' is one word too many"),
    "models van_b0": (2, "'van_b0' is one word too many"),
    "demo extra": (2, "'extra' is one word too many"),
    "demo --epochs 3": (2, "--epochs"),
    "predict photo.png --top_5": (2, "Unknown option: --top_5"),
    "study ablation --seed 4": (2, "Unknown option: --seed. Did you mean --seeds?"),
    # what an unset variable of the shell leaves
    "train ''": (2, "DATA is empty: expected a value; a variable of the shell may not be set. See vankit train --help"),
    "predict ''": (2, "IMAGES is empty: expected a value"),
    "predict photo.png ''": (2, "IMAGES is empty: expected a value"),
    "validate ''": (2, "DATA is empty: expected a value"),
    "inspect ''": (2, "DATA is empty: expected a value"),
    "explain ''": (2, "IMAGES is empty: expected a value"),
    "export ''": (2, "MODEL is empty: expected a value"),
    "convert TWO ''": (2, "TARGET is empty: expected a value"),
    "demo --output ''": (2, "--output is empty: expected a value"),
    "predict photo.png --checkpoint ''": (2, "--checkpoint is empty: expected a value"),
    "predict photo.png --model=": (2, "--model is empty: expected a value"),
    "train data --output ''": (2, "--output is empty: expected a value"),
    "train data --recipe ''": (2, "--recipe is empty: expected a value"),
    "study ablation --train ''": (2, "--train is empty: expected a value"),
    "predict photo.png --model ./nowhere": (1, "no checkpoint at nowhere: pass the path of a .safetensors"),
    # serve
    "serve": (2, "MODELS requires an argument. See vankit serve --help"),
    "serve ''": (2, "MODELS is empty: expected a value"),
    "serve van_b0.cifar10 --port x": (2, "Invalid value for --port: 'x', expected a whole number"),
    "serve van_b0.cifar10 --port 70000": (1, "--port is 70000, expected 0 to 65535"),
    "serve van_b0.cifar10 --max-body 20XB": (2, "--max-body: '20XB', expected bytes, such as 20MB or 512KB."),
    "serve van_b0.cifar10 --workers 0": (1, "--workers is 0, expected a whole number, 1 or more"),
    "serve van_b0.cifar10 --queue -1": (1, "--queue is -1, expected a whole number, 0 or more"),
    "serve van_b0.cifar10 --timeout 0": (1, "--timeout is 0.0, expected 0.1 seconds or more"),
    "serve van_b0.cifar10 --host no.such.host.invalid": (1, "--host is 'no.such.host.invalid', which is no address"),
    "serve van_b0.cifar10 --token-file nowhere": (1, "no file nowhere"),
    "serve van_b0.cifar10 --engine fast": (2, 'Invalid value "fast" for --engine'),
    "serve a=van_b0 a=van_b0": (1, "would both be called a: pass NAME=MODEL"),
    "serve van_b9 --port 0": (1, "van_b9"),
    # train: values of a wrong type, missing values, wrong choices
    "train data --epoch 3": (2, "Unknown option: --epoch. Did you mean --epochs?"),
    "train data --epochs": (2, "--epochs requires an argument"),
    "train data --epochs x": (2, "Invalid value for --epochs: 'x', expected a whole number"),
    "train data --epochs 1.5": (2, "Invalid value for --epochs: '1.5', expected a whole number"),
    "train data --epochs 2.0": (2, "Invalid value for --epochs: '2.0', expected a whole number"),
    "train data --epochs none": (2, "Invalid value for --epochs: 'none', expected a whole number"),
    "train data --epochs 3 --epochs 4": (2, "--epochs specified multiple times"),
    "train data --lr x": (2, "Invalid value for --lr: 'x', expected a number"),
    "train data --lr null": (2, "Invalid value for --lr: 'null', expected a number"),
    "train data --precision 64": (2, 'Invalid value "64" for --precision. Choose from: "32-true"'),
    "train data --logger comet": (2, 'Invalid value "comet" for --logger. Choose from: "tensorboard"'),
    "train data --interpolation junk": (2, 'Invalid value "junk" for --interpolation. Choose from: "bicubic"'),
    "train data --balance yes": (2, 'Invalid value "yes" for --balance. Choose from: "none", "weights"'),
    "train data --task count": (2, 'Invalid value "count" for --task. Choose from: "classify"'),
    "train data --weights best": (2, 'Invalid value "best" for --weights. Choose from: "raw", "ema"'),
    "train data --compile maybe": (2, "'maybe' is one word too many"),
    "train data --skip-bad 3": (2, "'3' is one word too many"),
    "train data --resume=maybe": (2, "--resume"),
    "train data --lka 3": (2, "--lka: '3', expected its parts one by one, such as --lka.kernel-size"),
    "train data --lka.form round": (2, 'Invalid value "round" for --lka.form. Choose from: "lka"'),
    "train data --lka.kernel-size 1.5": (2, "--lka.kernel-size: '1.5', expected a whole number"),
    "train data --lka.nope 1": (2, "Unknown option: --lka.nope"),
    "train data --task detect --schedule exp": (2, 'Invalid value "exp" for --schedule. Choose from: "step"'),
    "train data --task detect --batch-norm none": (2, 'Invalid value "none" for --batch-norm. Choose from: "train"'),
    "train data --task detect --steps x": (2, "Invalid value for --steps: 'x', expected a whole number"),
    "train data --task detect --steps": (2, "--steps requires at least 1 element"),
    "train data --task detect --short-sides 3.5": (2, "Invalid value for --short-sides: '3.5', expected a whole"),
    "train data --task detect --scale-range 1": (2, "--scale-range requires 2"),
    "train data --task detect --scale-range 1 x": (2, "Invalid value for --scale-range: 'x', expected a number"),
    # train: values out of range
    "train data --epochs 0": (1, "--epochs is 0, expected 1 or more"),
    "train data --epochs 3 --warmup-epochs 7": (1, "--warmup-epochs is 7 of 3 epochs: expected fewer than --epochs"),
    "train data --lr -1": (1, "--lr is -1.0, expected 0 or more"),
    "train data --lr nan": (1, "--lr is nan, expected a finite number"),
    "train data --lr-batch 0": (1, "--lr-batch is 0, expected 1 or more"),
    "train data --min-lr -1": (1, "--min-lr is -1.0, expected 0 or more"),
    "train data --warmup-lr -1": (1, "--warmup-lr is -1.0, expected 0 or more"),
    "train data --optimizer adamx": (1, "--optimizer is 'adamx', which timm does not have"),
    "train data --weight-decay -1": (1, "--weight-decay is -1.0, expected 0 or more"),
    "train data --clip-grad -1": (1, "--clip-grad is -1.0, expected 0 or more"),
    "train data --nan-tolerance -1": (1, "--nan-tolerance is -1, expected 0 or more"),
    "train data --batch-size 0": (1, "--batch-size is 0, expected 1 or more"),
    "train data --batch-size 3 --recipe in1k": (1, "--batch-size is 3: --mixup and --cutmix pair images"),
    "train data --batch-size 1 --img-size 32": (1, "--batch-size is 1 and --img-size 32: the last stage has one"),
    "train data --accumulate 0": (1, "--accumulate is 0, expected 1 or more"),
    "train data --drop-path-rate 2": (1, "--drop-path-rate is 2.0, expected 0 or more, and less than 1"),
    "train data --drop-rate 2": (1, "--drop-rate is 2.0, expected 0 or more, and less than 1"),
    "train data --patience -1": (1, "--patience is -1, expected 0 or more"),
    "train data --ema-decay 2": (1, "--ema-decay is 2.0, expected 0 or more, and less than 1"),
    "train data --seed -1": (1, "seed is -1"),
    "train data --val-share 1": (1, "share is 1.0"),
    "train data --workers -1": (1, "--workers is -1, expected 0 to 1024"),
    "train data --workers 100000": (1, "--workers is 100000, expected 0 to 1024"),
    "train data --lka.kernel-size 0": (1, "kernel-size is"),
    "train data --lka.kernel-size 7 14 --lka.dilation 2 3 4": (1, "--lka.dilation is (2, 3, 4)"),
    "train data --cooldown-epochs -1": (1, "--cooldown-epochs is -1, expected 0 or more"),
    "train data --layer-decay 0": (1, "--layer-decay is 0.0, expected more than 0, to 1"),
    "train data --layer-decay 2": (1, "--layer-decay is 2.0, expected 0 to 1"),
    "train data --img-size 0": (1, "--img-size is 0, which a network cannot take"),
    "train data --img-size 1000000000": (1, "--img-size is 1000000000, which a network cannot take"),
    "train data --crop-pct 0": (1, "--crop-pct is 0.0, expected more than 0, to 1"),
    "train data --crop-pct 1e-9": (1, "crop-pct is 1e-09"),
    "train data --crop-pct 2": (1, "--crop-pct is 2.0, expected 0 to 1"),
    "train data --min-scale 0": (1, "--min-scale is 0.0, expected more than 0, to 1"),
    "train data --auto-augment junk": (1, "--auto-augment is 'junk', expected a policy that timm has, such as rand-m9"),
    "train data --auto-augment rand-m9-zzz": (1, "--auto-augment is 'rand-m9-zzz', expected a policy"),
    "train data --auto-augment rand-m99999": (1, "--auto-augment is 'rand-m99999', expected a policy"),
    "train data --auto-augment rand-tnope": (1, "--auto-augment is 'rand-tnope', expected a policy"),
    "train data --color-jitter -1": (1, "--color-jitter is -1.0, expected 0 or more"),
    "train data --random-erasing 2": (1, "--random-erasing is 2.0, expected 0 to 1"),
    "train data --mixup -1": (1, "--mixup is -1.0, expected 0 or more"),
    "train data --cutmix nan": (1, "--cutmix is nan, expected a finite number"),
    "train data --mixup-switch-prob 2": (1, "--mixup-switch-prob is 2.0, expected 0 to 1"),
    "train data --smoothing 2": (1, "--smoothing is 2.0, expected 0 or more, and less than 1"),
    "train data --task detect --iterations -1": (1, "--iterations is -1, expected 0 or more"),
    "train data --task detect --iterations 3 --epochs 4": (1, "--epochs is 4 and --iterations 3: give the length"),
    "train data --task detect --steps -1": (1, "--steps is (-1,), expected epochs from 1 on"),
    "train data --task detect --power -1": (1, "--power is -1.0, expected 0 or more"),
    "train data --task detect --warmup-iterations -1": (1, "--warmup-iterations is -1, expected 0 or more"),
    "train data --task detect --backbone-lr -1": (1, "--backbone-lr is -1.0, expected 0 or more"),
    "train data --task detect --short-sides 0": (1, "--short-sides is (0,), expected at least one length"),
    "train data --task detect --long-side 0": (1, "--long-side is 0, expected 1 or more"),
    "train data --task detect --long-side 700": (1, "--long-side is 700, expected no less than the largest of --short"),
    "train data --task detect --scale-range 2 1": (1, "--scale-range is (2.0, 1.0), expected 0 < low <= high"),
    "train data --task detect --crop -1": (1, "--crop is -1, expected 0 or more"),
    "train data --task segment --crop 0": (1, "--crop is 0: segmentation trains on squares"),
    "train data --task detect --flip 2": (1, "--flip is 2.0, expected 0 to 1"),
    "train data --task detect --head sparse_rcnn --queries 0": (1, "--queries is 0, expected 1 or more"),
    "train data --task segment --ignore-label 300": (1, "--ignore-label is 300, expected 0 to 255"),
    "train data --task segment --map-labels 3": (1, "has '3': expected OLD:NEW, such as 255:1"),
    "train data --task detect --validate-every 0": (1, "--validate-every is 0, expected 1 or more"),
    # train: what does not go together, and what is not there
    "train data --flip 0.5": (1, "--flip is only for the tasks detect, segment and panoptic: leave it out"),
    "train data --task detect --mixup 0.5": (1, "--mixup is only for task classify: leave it out"),
    "train data --task detect --queries 5": (1, "--queries is only for heads that have them (sparse_rcnn, rt_detr"),
    "train data --task detect --map-labels 255:1": (1, "--map-labels is only for task segment, not for detect"),
    "train data --task panoptic --ignore-label 3": (1, "--ignore-label is only for task segment, not for panoptic"),
    "train data --task segment --allow-outside": (1, "--allow-outside is only for tasks detect and panoptic"),
    "train data --allow-outside": (1, "a classifier has no --allow-outside: pass --task detect, segment or panoptic"),
    "train data --head mask_rcnn": (1, "a classifier has no --head: pass --task detect, segment or panoptic"),
    "train data --task detect --head upernet": (1, "unknown head 'upernet' for detect: expected one of retinanet"),
    "train data --recipe coco_1x": (1, "--recipe is 'coco_1x', expected one of in1k, finetune, short for classify"),
    "train data --task detect --recipe in1k": (1, "--recipe is 'in1k', expected one of coco_1x, coco_3x, short"),
    "train data --model van_b9": (1, "unknown model 'van_b9': expected one of van_b0, van_b1"),
    "train data --model van_b0.nope": (1, "van_b0.nope is not the name of public weights: expected van_b0"),
    "train data --model resnet18": (1, "resnet18 is not a VAN: expected van_b0 to van_b6"),
    "train data --checkpoint nowhere.pth": (1, "no checkpoint at nowhere.pth"),
    "train data --weights ema": (1, "(--weights) chooses among those of a checkpoint"),
    "train data --resume": (1, "nothing to resume in runs/van_b0"),
    "train data --output a-file": (1, "a-file is a file: pass a folder to write into"),
    "train nowhere": (1, "no dataset at nowhere"),
    "train data/train/dark/0.png": (1, "no dataset at data/train/dark/0.png: expected a directory"),
    "train one-class --batch-size 2": (1, "one-class has one class, dark: expected at least two"),
    # predict
    "predict photo.png --model": (2, "--model requires an argument"),
    "predict photo.png --engine tensorrt": (2, 'Invalid value "tensorrt" for --engine. Choose from: "auto", "torch"'),
    "predict photo.png --precision fp16": (2, 'Invalid value "fp16" for --precision. Choose from: "auto"'),
    "predict photo.png --top-k 1.5": (2, "Invalid value for --top-k: '1.5', expected a whole number"),
    "predict photo.png --score none": (2, "Invalid value for --score: 'none', expected a number"),
    "predict photo.png --workers 4": (2, 'Invalid value "4" for --workers. Choose from: "local", "ray"'),
    "predict photo.png --device toaster": (1, "--device is 'toaster', expected auto, cpu, or cuda with a GPU"),
    "predict photo.png --device meta": (1, "--device is 'meta', which cannot be used"),
    "predict photo.png --device cuda:99": (1, "--device is 'cuda:99', which cannot be used"),
    "predict photo.png --top-k 0": (1, "--top-k is 0, expected 1 or more"),
    "predict photo.png --batch-size 0": (1, "--batch-size is 0, expected 1 or more"),
    "predict photo.png --max-pixels -5": (1, "--max-pixels is -5, expected 1 or more"),
    "predict photo.png --score 2": (1, "--score is 2.0, expected 0 to 1"),
    "predict photo.png --score nan": (1, "--score is nan, expected 0 to 1"),
    "predict photo.png --weights ema": (1, "(--weights) chooses among those of a checkpoint"),
    "predict photo.png --workers ray": (1, "--workers ray writes Parquet files: name a folder or URL with --output"),
    "predict photo.png --address auto": (1, "--address names a Ray cluster: add --workers ray"),
    "predict photo.png --checkpoint nowhere.pth": (1, "no checkpoint at nowhere.pth"),
    "predict photo.png --checkpoint empty": (1, "no checkpoint in the folder empty: expected best.safetensors"),
    "predict photo.png --checkpoint a-file": (
        1,
        "a-file is not a checkpoint: expected .safetensors, or a file of torch.save",
    ),
    "predict photo.png --model resnetty": (1, "unknown model 'resnetty': expected one of van_b0"),
    "predict photo.png --model van_b0.nope": (1, "van_b0.nope: Invalid pretrained tag (nope) for van_b0"),
    "predict photo.png --model hf-hub:user/name": (1, "could not fetch hf-hub:user/name from http://127.0.0.1:9: "),
    "predict photo.png --model ./nowhere/": (1, "no checkpoint at nowhere"),
    "predict photo.png --checkpoint TWO --model van_b1": (1, "is a van_b0, not a van_b1: leave out model (--model)"),
    "predict photo.png --checkpoint TWO --score 0.5": (1, "only detectors and segmenters have --score: pass the"),
    "predict photo.png --checkpoint TWO --test slide": (1, "only detectors and segmenters have --test: pass the"),
    "predict photo.png --checkpoint TWO --resume": (1, "--resume continues an output: name it with --output"),
    "predict photo.png --checkpoint SCENES --top-k 3": (1, "is a semantic_fpn, which cannot use --top-k: leave it out"),
    "predict photo.png --checkpoint SCENES --reduced": (1, "is a semantic_fpn, which cannot use --reduced: leave"),
    "predict photo.png --output /dev/full": (
        1,
        "cannot write predictions to /dev/full: expected a name ending in .csv",
    ),
    "predict photo.png --output a-file": (1, "cannot write predictions to a-file: expected a name ending in .csv"),
    "predict s3://bucket/x --checkpoint TWO": (1, "s3://bucket/x is a URL, which is read only with workers on Ray"),
    "predict photo.png --checkpoint SCENES --score 0.5": (1, "--score is only for detectors, and"),
    "predict photo.png --checkpoint SCENES --tile 64": (1, "--tile is 64, which is only for detectors: "),
    "predict photo.png --checkpoint TWO --tile 64": (1, "only detectors and segmenters have --tile: pass the"),
    "predict photo.png --tile 8": (1, "--tile is 8, expected a whole number of pixels, 32 or more"),
    "predict photo.png --tile 64.5": (2, "Invalid value for --tile: '64.5', expected a whole number"),
    "predict photo.png --tile 64 --overlap 1": (1, "--overlap is 1.0, expected 0 to 0.9"),
    "predict photo.png --overlap 0.5": (1, "--overlap is that of tiles: pass --tile too, such as 640"),
    "predict photo.png --checkpoint TWO --output x.mp4": (1, "cannot write predictions to x.mp4: expected a name"),
    "predict photo.png --checkpoint SCENES --output x.mp4": (1, "photo.png is not a video that can be read: expected"),
    "predict photo.png x.png --checkpoint SCENES --output x.mp4": (1, "x.mp4 is a video, which is made from one video"),
    "predict nowhere.mp4 --checkpoint SCENES --output x.mp4": (1, "no file nowhere.mp4"),
    "predict photo.png --checkpoint SCENES --output x.avi": (
        1,
        "cannot write a video to x.avi: expected a name ending",
    ),
    "predict photo.png --checkpoint SCENES --model van_b0": (1, "is a detector or segmenter with its own classes"),
    "predict photo.png --checkpoint SCENES --precision int8": (1, "segmenter has no int8: export it"),
    # validate
    "validate data --test double": (2, 'Invalid value "double" for --test. Choose from: "single"'),
    "validate data --batch-size 1.5": (2, "Invalid value for --batch-size: '1.5', expected a whole number"),
    "validate data --batch-size 0": (1, "--batch-size is 0, expected 1 or more"),
    "validate data --workers -1": (1, "--workers is -1, expected 0 or more"),
    "validate data --seed -1": (1, "seed is -1"),
    "validate data --device toaster": (1, "--device is 'toaster', expected auto, cpu, or cuda"),
    "validate data --output x.txt": (1, "x.txt is not the name of a JSON file: expected one that ends in .json"),
    "validate data --plot x.doc": (1, "x.doc is not the name of a picture: expected one that ends in .avif"),
    "validate data --report x.pdf": (1, "x.pdf is not the name of a page: expected one that ends in .html"),
    "validate nowhere --checkpoint TWO": (1, "no dataset at nowhere"),
    "validate data --checkpoint TWO": (1, "the network does not know 2 of the data's 2 classes (dark, light)"),
    "validate data --checkpoint TWO --split nope": (1, "no nope split in data"),
    "validate data --checkpoint TWO --test slide": (1, "--test and --allow-outside are only for detectors and segm"),
    "validate data --checkpoint TWO --tile 64": (1, "--tile is only for detectors: pass the --checkpoint of one"),
    "validate data --checkpoint SCENES --tile 64": (1, "--tile is 64, which is only for detectors: "),
    "validate data --overlap 0.5": (1, "--overlap is that of tiles: pass --tile too, such as 640"),
    "validate data --checkpoint SCENES --plot x.png": (1, "has no confusion matrix: leave out --plot"),
    "validate data --checkpoint SCENES --allow-outside": (1, "--allow-outside is only for detectors and panoptic"),
    # explain
    "explain photo.png --method saliency": (2, 'Invalid value "saliency" for --method. Choose from: "grad-cam"'),
    "explain photo.png --stage none": (2, "Invalid value for --stage: 'none', expected a whole number"),
    "explain": (1, "method grad-cam looks at images: pass files, folders or patterns"),
    "explain photo.png --stage 5": (1, "--stage is 5, expected 1 to 4"),
    "explain photo.png --stage 0": (1, "--stage is 0, expected 1 to 4"),
    "explain photo.png --layer stage1 --stage 1": (1, "--layer and --stage both say where to look: leave out one"),
    "explain photo.png --layer stage1 --compare van_b1": (1, "--layer names a module of one network: to --compare"),
    "explain photo.png --method attention --target cat": (1, "--target is only for method grad-cam: leave it out"),
    "explain photo.png --method attention --compare van_b1": (1, "--compare is only for grad-cam and receptive-field"),
    "explain photo.png --compare ,": (1, "--compare is ',', expected models or checkpoints, separated by commas"),
    "explain photo.png --img-size 0": (1, "--img-size is 0, which a network cannot take"),
    "explain photo.png --img-size 1000000000": (1, "--img-size is 1000000000, which a network cannot take"),
    "explain photo.png --device toaster": (1, "--device is 'toaster', expected auto, cpu, or cuda with a GPU"),
    "validate data --max-pixels 0": (1, "--max-pixels is 0, expected 1 or more"),
    "explain photo.png --max-pixels 0": (1, "--max-pixels is 0, expected 1 or more"),
    "explain photo.png --checkpoint nowhere": (1, "no checkpoint at nowhere"),
    "explain photo.png --checkpoint TWO --target kat": (1, "knows no class 'kat': as --target expected one of its 2"),
    "explain photo.png --checkpoint TWO --layer nope": (1, "has no module 'nope' (--layer): expected a name in stage1"),
    "explain photo.png --checkpoint SCENES --img-size 64": (1, "--img-size is for classifiers"),
    # export and convert
    "export van_b0 --format tflite": (2, 'Invalid value "tflite" for --format. Choose from: "openvino"'),
    "export van_b9": (1, "unknown model 'van_b9': expected one of van_b0"),
    "export van_b0 --int8": (1, "--int8 and --calibrate go together: pass both, or neither"),
    "export van_b0 --calibrate data": (1, "--int8 and --calibrate go together: pass both, or neither"),
    "export van_b0 --int8 --calibrate data --max-drop 2": (1, "--max-drop is 2.0: expected 0 to 1"),
    "export van_b0 --int8 --calibrate data --format pt2": (
        1,
        "--int8 is for format openvino or onnx, not pt2: leave it out",
    ),
    "export van_b0 --max-drop 0.5": (1, "--max-drop is what int8 may lose: add --int8 --calibrate DATA"),
    "export van_b0 --output a-file": (1, "a-file is a file: pass a folder to write into"),
    "export van_b0 --output data": (1, "data holds other files, such as train: pass another folder (--output)"),
    "export --checkpoint SCENES --format pt2": (
        1,
        "is a semantic_fpn, and pt2 is for classifiers: use format openvino",
    ),
    "export --checkpoint SCENES --format web": (
        1,
        "is a semantic_fpn, and web is for classifiers: use format openvino or onnx",
    ),
    "export van_b0 --format web --dynamic": (1, "--dynamic is for format openvino or onnx or pt2, not web"),
    "export van_b0 --format web --runtime nowhere": (
        1,
        "--runtime is nowhere, in which ort.wasm.bundle.min.mjs is missing: expected the folder of npm's",
    ),
    "export van_b0 --format web --runtime ''": (2, "--runtime is empty: expected a value"),
    "export van_b0 --runtime data": (1, "--runtime is for format web, not openvino: leave it out"),
    "export --checkpoint SCENES --size 64 64": (1, "--size is for format executorch or litert, not openvino"),
    "export --checkpoint SCENES --format litert --size 64 50": (
        1,
        "--size is (64, 50): expected height and width, mul",
    ),
    "export --checkpoint SCENES --dynamic": (
        1,
        "is a semantic_fpn, whose model takes every size anyway: leave out --dynamic",
    ),
    "export --checkpoint SCENES --format onnx --opset 21": (1, "is a semantic_fpn: expected 18 to 20"),
    "export --checkpoint SCENES --format onnx --int8 --calibrate shapes": (
        1,
        "is a semantic_fpn, for which --int8 needs format openvino: leave out --format",
    ),
    "export --checkpoint SCENES --int8 --calibrate x": (1, "no dataset at x: expected a folder, or the word 'shapes'"),
    "export van_b0.cifar10 --check data": (
        1,
        "--check is for detectors and segmenters, and van_b0.cifar10 is a classifier",
    ),
    "convert TWO x.pth --to caffe": (2, 'Invalid value "caffe" for --to. Choose from: "vankit", "official"'),
    "convert nowhere.pth x.safetensors": (1, "no checkpoint at nowhere.pth"),
    "convert TWO x.pth": (1, "x.pth: vankit files are safetensors: expected a name that ends in .safetensors"),
    "convert TWO x.xyz": (1, "x.xyz: vankit files are safetensors: expected a name that ends in .safetensors"),
    "convert TWO x": (1, "x: vankit files are safetensors: expected a name that ends in .safetensors"),
    "convert TWO x.onnx --to official": (1, "x.onnx: official files are pickles of tensors: expected a name that ends"),
    "convert TWO TWO": (1, "two.safetensors is what is to be converted: name another file to write"),
    # models, bench, inspect, study, demo
    "models --size 1.5": (2, "Invalid value for --size: '1.5', expected a whole number"),
    "models --size 0": (1, "--size is 0, expected 1 pixel or more"),
    "bench van_b9": (1, "unknown model 'van_b9'"),
    "bench --seconds x": (2, "Invalid value for --seconds: 'x', expected a number"),
    "bench --seconds 0": (1, "--seconds is 0.0, expected more than 0"),
    "bench --seconds inf": (1, "--seconds is inf, expected more than 0, and an end"),
    "inspect data --task count": (2, 'Invalid value "count" for --task. Choose from: "classify"'),
    "inspect data --workers -1": (1, "--workers is -1, expected 0 or more"),
    "inspect data --output x.txt": (1, "x.txt is not the name of a page: expected one that ends in .html"),
    "inspect nowhere": (1, "no folder nowhere: expected one with data to train on"),
    "inspect shapes": (1, "shapes is not a folder of files"),
    "study decomposition --dilation 1.5": (2, "Invalid value for --dilation: '1.5', expected a whole number"),
    "study decomposition --channels": (2, "--channels requires at least 1 element"),
    "study decomposition --kernel-size 0": (1, "--kernel-size is 0, expected 1 to 1,000,000"),
    "study decomposition --dilation 0": (1, "--dilation is 0, expected 1 to 1,000,000"),
    "study decomposition --channels 32 -4": (1, "--channels is -4, expected 1 to 1,000,000"),
    "study decomposition --plot x.doc": (1, "x.doc is not the name of a picture"),
    "study variants van_b9": (1, "unknown variant 'van_b9': expected one of van_b0"),
    "study variants van_b0 --size 0": (1, "--size is 0, expected 1 pixel or more"),
    "study ablation --rows full": (1, "--rows, --seeds, --output, --plot and training settings are for trained rows"),
    "study ablation --epochs 3": (1, "--rows, --seeds, --output, --plot and training settings are for trained rows"),
    "study ablation --seeds 4": (1, "--rows, --seeds, --output, --plot and training settings are for trained rows"),
    "study ablation --train data --seeds 0": (1, "--seeds is 0, expected 1 or more"),
    "study ablation --train data --rows nope": (1, "there is no row 'nope': expected some of without DW"),
    "study ablation --train data --model resnet18": (1, "unknown variant 'resnet18': expected one of van_b0"),
    "study ablation --train data --plot x.doc": (1, "x.doc is not the name of a picture"),
    "study compare nope": (1, "unknown model 'nope'"),
    "study compare --seconds -1": (1, "--seconds is -1.0, expected 0 or more"),
    "study compare van_b0 --seconds 0 --plot x.doc": (1, "x.doc is not the name of a picture"),
    "demo --output a-file": (1, "a-file"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with some data, a photograph, an empty folder and a file."""
    root = tmp_path_factory.mktemp("place")
    for split in ("train", "val"):
        for name, level in (("dark", 50), ("light", 200)):
            for folder in ("data", "one-class")[: 1 + (name == "dark")]:
                (root / folder / split / name).mkdir(parents=True)
                for i in range(2):
                    image = Image.fromarray(np.full((32, 32, 3), level + i, np.uint8))
                    image.save(root / folder / split / name / f"{i}.png")
    Image.new("RGB", (32, 32)).save(root / "photo.png")
    (root / "empty").mkdir()
    (root / "a-file").write_text("x")
    (root / "-dash.png").write_text("x")
    return root


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In that folder, without a hub; nothing may be left there."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "empty"))
    before = sorted(place.rglob("*"))
    yield
    assert sorted(place.rglob("*")) == before


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("line", TYPED)
def test_a_wrong_command_is_answered_in_one_line(
    line: str, run: Run, checkpoint: Path, segmenter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, says = TYPED[line]
    files = {"TWO": checkpoint, "SCENES": segmenter}
    assert run(*(files.get(word, word) for word in shlex.split(line))) == status
    page = capsys.readouterr()
    assert page.err.startswith("vankit: ") and page.err.count("\n") == 1 and page.out == ""
    assert says in page.err
