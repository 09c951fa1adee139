#!/usr/bin/env bash
# Sets up the project and runs the staged pipeline: data, stages, summary table. `bash run_all.sh --help` says more.
#
# Every step goes through `step`: its output is kept in results/logs/<run>/, and a finished step is skipped on the next
# start (see src/clipfh/pipeline/steps.py). A new stage N is a function stageN, and a larger last_stage.
set -euo pipefail
here=$PWD
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
last_stage=5

usage() {
    cat <<'EOF'
Usage: bash run_all.sh [options]

Sets up .venv (the first time only), prepares a dataset, trains and evaluates the stages, and prints the table of
results. Without options: the generated garments, a small CLIP trained from scratch, stages 0 to 3; no download of data
or weights, no GPU. Started again, it skips the steps that are finished and whose outputs are untouched.

What to run on
  --dataset NAME      synthetic (default), inshop, hands11k, hd, market1501, grocery, folder
  --data_root DIR     folder of the raw dataset; needed by all but synthetic (default there: data/raw/synthetic)

  --captions NAME     captioned images of stage 4: synthetic (default), coco, flickr8k, flickr30k, grocery, jsonl
                      (their text tower is that of --model; tiny-rn has read of garments only)
  --captions_root DIR folder of those; needed by all but synthetic
  --captions_val N, --captions_test N
                      how many of them choose BEST and are held out, where the layout does not say which

  --faces PATH        faces of stage 5: a folder in FER2013's layout, or fer2013.csv
                      (default: data/fer2013 if it is there, else generated faces)

What to train
  --model NAME        tiny-rn (default), tiny-vit, ViT-B/16, ViT-B/32, ViT-L/14, RN50, or another open_clip name
  --pretrained NAME   weights to start from: a tag of open_clip such as openai, a weights file, or TAG=FILE for a
                      file of such a tag whose name does not hold it
                      (default: the weights of stage 0 for the tiny models, openai for the others)
  --stages LIST       which stages: 1-3, 2, 1,3 or 0-5 (default: 0-3 where stage 0 makes the weights, else 1-3)
                        0  pretrain a small CLIP       2  fine-tune the image encoder
                        1  evaluate zero-shot          3  fine-tune both encoders
                        4  align an image encoder to the frozen text encoder, on captions
                        5  text-image GANs around the frozen CLIP, on faces
                      A tiny model without weights is always pretrained first.
  --variant NAME      preset of stage 3: v1, v2, v3, v4 (default); v3 goes on from v2, which is trained first
  --no-exclude_same_camera
                      keep photos of a query's own camera in its gallery, whatever the dataset's protocol says
  --final_fit         train stages 2 and 3 on the val identities too, for figures that compare with papers; the last
                      epoch counts
  --epochs N          epochs of stages 2 to 5 (default: what each stage finds best)
  --seed N            seed of the training (default: 0). The identities and splits of the data stay the same, so that
                      runs with several seeds can be compared
  --device NAME       auto (default), cpu, cuda, cuda:1, mps

How to run
  --smoke             every step on very little data, in about a minute, in folders of its own (synthetic_smoke)
  --force             run finished steps again
  --setup-only        set up and stop
  --help              this text

PYTHON=/path/to/python3 in the environment chooses the Python (3.10 or newer) that .venv is made with. In an activated
environment that satisfies constraints.txt nothing is installed.
EOF
}

fail() { # MESSAGE...: a wrong option
    echo "error: $*" >&2
    echo "See: bash run_all.sh --help" >&2
    exit 2
}

one_of() { # OPTION VALUE VALID...
    local option=$1 value=$2 valid
    shift 2
    for valid in "$@"; do [ "$value" != "$valid" ] || return 0; done
    fail "$option '$value' is unknown; valid: $*"
}

# --- options ---------------------------------------------------------------------------------------------------------

dataset=synthetic data_root='' model=tiny-rn pretrained='' stage_list='' variant=v4 epochs='' seed=0 device=auto
smoke=no force=no setup_only=no same_camera=no final_fit=no captions=synthetic captions_root='' faces='' captions_val='' captions_test=''

while [ $# -gt 0 ]; do
    option=$1
    shift
    case $option in
        --*=*)
            set -- "${option#*=}" "$@"
            option=${option%%=*}
            case $option in --smoke | --force | --setup-only | --final_fit | --no-exclude_same_camera | --help) fail "$option takes no value" ;; esac
            ;;
    esac
    case $option in
        -h | --help) usage && exit 0 ;;
        --smoke) smoke=yes && continue ;;
        --force) force=yes && continue ;;
        --final_fit) final_fit=yes && continue ;;
        --no-exclude_same_camera) same_camera=yes && continue ;;
        --setup-only) setup_only=yes && continue ;;
        --dataset | --data_root | --captions | --captions_root | --captions_val | --captions_test | --faces | --model | --pretrained | --stages | --variant | --epochs | --seed | --device) ;;
        *) fail "unknown option '$option'" ;;
    esac
    case ${1:-} in '' | --*) fail "$option needs a value" ;; esac
    case $option in
        --dataset) dataset=$1 ;;
        --data_root) data_root=$1 ;;
        --captions) captions=$1 ;;
        --captions_root) captions_root=$1 ;;
        --captions_val) captions_val=$1 ;;
        --captions_test) captions_test=$1 ;;
        --faces) faces=$1 ;;
        --model) model=$1 ;;
        --pretrained) pretrained=$1 ;;
        --stages) stage_list=$1 ;;
        --variant) variant=$1 ;;
        --epochs) epochs=$1 ;;
        --seed) seed=$1 ;;
        --device) device=$1 ;;
    esac
    shift
done

one_of --dataset "$dataset" synthetic inshop hands11k hd market1501 grocery folder
one_of --captions "$captions" synthetic coco flickr8k flickr30k grocery jsonl
one_of --variant "$variant" v1 v2 v3 v4
case $model in tiny-*) one_of --model "$model" tiny-rn tiny-vit ;; esac
case $device in auto | cpu | mps | cuda | cuda:[0-9]) ;; *) fail "--device '$device' is unknown; valid: auto cpu cuda cuda:N mps" ;; esac
case $seed in *[!0-9]*) fail "--seed '$seed' is not a whole number, 0 or more" ;; esac
for count in "$captions_val" "$captions_test"; do
    case $count in *[!0-9]* | 0*) fail "--captions_val and --captions_test are whole numbers, 1 or more, not '$count'" ;; esac
done
case $epochs in *[!0-9]* | 0*) fail "--epochs '$epochs' is not a whole number, 1 or more" ;; esac

absolute() { case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac }
if [ -n "$data_root" ]; then
    data_root=$(absolute "$data_root")
    [ "$dataset" = synthetic ] || [ -d "$data_root" ] || fail "--data_root: there is no folder $data_root"
elif [ "$dataset" != synthetic ]; then
    fail "--dataset $dataset needs --data_root DIR, the folder of the raw data"
fi
if [ -n "$captions_root" ]; then
    captions_root=$(absolute "$captions_root")
    [ -d "$captions_root" ] || fail "--captions_root: there is no folder $captions_root"
elif [ "$captions" != synthetic ]; then
    fail "--captions $captions needs --captions_root DIR, the folder of the captioned images"
fi
faces_given=$faces
if [ -n "$faces" ]; then
    faces=$(absolute "$faces")
    [ -e "$faces" ] || fail "--faces: there is no $faces"
elif [ -e data/fer2013 ]; then
    faces=$PWD/data/fer2013
fi
weights_file=${pretrained#*=} # of TAG=FILE, or all of it
if [ -n "$pretrained" ] && [ -f "$(absolute "$pretrained")" ]; then
    pretrained=$(absolute "$pretrained")
elif [ -n "$weights_file" ] && [ -f "$(absolute "$weights_file")" ]; then
    pretrained=${pretrained%%=*}=$(absolute "$weights_file")
fi

makes_weights=no # whether stage 0 does
case $model:$pretrained in tiny-*:) makes_weights=yes ;; esac
if [ -z "$stage_list" ]; then
    if [ $makes_weights = yes ]; then stage_list=0-3; else stage_list=1-3; fi
fi
valid_stages="valid: 0 to $last_stage, as in 1-3, 2 or 1,3"
stages=' ' # " 0 1 2 3 "
for part in ${stage_list//,/ }; do
    case $part in
        [0-9]) first=$part last=$part ;;
        [0-9]-[0-9]) first=${part%-*} last=${part#*-} ;;
        *) fail "--stages '$stage_list' is not understood; $valid_stages" ;;
    esac
    [ "$first" -le "$last" ] && [ "$last" -le $last_stage ] || fail "--stages '$stage_list' is out of range; $valid_stages"
    while [ "$first" -le "$last" ]; do
        stages="$stages$first "
        first=$((first + 1))
    done
done
[ "$stages" != ' ' ] || fail "--stages '$stage_list' names no stage; $valid_stages"
wanted() { case $stages in *" $1 "*) return 0 ;; *) return 1 ;; esac }
if wanted 0 && [ $makes_weights = no ]; then
    fail "stage 0 makes the weights of tiny-rn and tiny-vit; with --model $model${pretrained:+ --pretrained $pretrained} leave it out: --stages 1-3"
fi

if [ -n "$faces_given" ] && ! wanted 5; then fail "--faces is for stage 5, which --stages '$stage_list' leaves out"; fi
if [ -n "$captions_val$captions_test" ] && ! wanted 4; then fail "--captions_val and --captions_test are for stage 4, which --stages '$stage_list' leaves out"; fi
if [ "$captions" != synthetic ] && ! wanted 4; then fail "--captions is for stage 4, which --stages '$stage_list' leaves out"; fi

# --- set-up ----------------------------------------------------------------------------------------------------------

project_python=$(bash set_up.sh)
if [ $setup_only = yes ]; then
    echo "set-up is done: $project_python"
    exit 0
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" # for an activated environment that does not hold the package

# --- names -----------------------------------------------------------------------------------------------------------

name=$dataset # what the metadata folder and the rows of the table are called
if [ $smoke = yes ]; then name=${dataset}_smoke; fi
metadata=metadata/$name
run=${name}_${model//\//-}
if [ "$seed" != 0 ]; then run=${run}_seed$seed; fi
logs=results/logs/$run

weights=(--model "$model") # without what suits the photos of one dataset
if [ -n "$pretrained" ]; then weights+=(--pretrained "$pretrained"); fi
start=("${weights[@]}")
# Where the scripts' defaults do not suit. What is given later on a command line wins: --epochs overrides these.
recipe=() encoder_recipe=() joint_recipe=() v4_recipe=()
case $model in
    tiny-*) # a small network trained on few photos: fewer, fuller batches
        encoder_recipe=(--epochs 12)
        joint_recipe=(--epochs 15 --k 4)
        v4_recipe=(--loss supcon+id)
        # stage 0 and the generated garments are 64 px, for speed; photographs have more to see
        # and the text encoder of stage 0 knows no words but a clothes shop's: no image-to-text term
        if [ "$dataset" != synthetic ]; then start+=(--image_size 96) encoder_recipe+=(--loss supcon+id); fi
        ;;
esac
case $dataset in hands11k | hd) recipe=(--flip 0) ;; esac # a mirrored left hand is a right one
on_data=(--dataset "$name" --device "$device")
training=(--seed "$seed")
if [ -n "$epochs" ]; then training+=(--epochs "$epochs"); fi
if [ $smoke = yes ]; then training+=(--smoke); fi
fit=("${training[@]}") # of stages 2 and 3
if [ $same_camera = yes ]; then on_data+=(--no-exclude_same_camera); fi
if [ $final_fit = yes ]; then fit+=(--final_fit); fi
evaluating=("${on_data[@]}")
apart='' # where below checkpoints/, logs/ and results/ a smoke run writes: nothing of a real run is touched
if [ $smoke = yes ]; then
    apart=/smoke
    evaluating+=(--results_dir "results$apart")
fi

step() { # NAME [--after NAME...] [--outputs PATTERN...] [--appends FILE] -- COMMAND...
    local step_name=$1 again=()
    shift
    if [ "$force" = yes ]; then again=(--force); fi
    "$project_python" -m clipfh.pipeline.steps --name "$step_name" --log "$logs/$step_name.log" ${again[@]+"${again[@]}"} "$@"
}

made_by() { # NAME PATTERN: the newest file that a finished step left, empty if there is none
    "$project_python" -m clipfh.pipeline.steps --log "$logs/$1.log" --recorded "$2" | tail -n 1 || true
}

# --- the pipeline ----------------------------------------------------------------------------------------------------

prepare_data() {
    local asked_force=$force
    local source=(--dataset "$dataset" --metadata_dir "$metadata")
    local raw=(--data_root "${data_root:-data/raw/$name}") raw_outputs=()
    if [ "$dataset" = synthetic ]; then raw_outputs=("${data_root:-data/raw/$name}"); fi
    if [ "$name" = synthetic_smoke ]; then raw+=(--num_identities 48); fi
    local tokenizer=() # whose tokens the prompts have to fit into; the tiny models read CLIP's, as the scripts assume
    case $model in tiny-*) ;; *) tokenizer=(--model "$model") ;; esac

    if [ "$dataset" != synthetic ]; then force=yes; fi # quick, and the only step that sees a change in the raw data
    step 00_prepare \
        --outputs "$metadata/dataset.json" "$metadata/image_paths.json" "$metadata/descriptions.json" ${raw_outputs[@]+"${raw_outputs[@]}"} \
        -- python preprocessing/00_prepare_dataset.py "${source[@]}" --name "$name" "${raw[@]}"
    force=$asked_force
    step 01_prompts --after 00_prepare --outputs "$metadata/image_prompts_per_identity.json" \
        -- python preprocessing/01_generate_prompts_from_descriptions.py "${source[@]}"
    step 02_analysis --after 01_prompts --outputs "$metadata/prompt_consistency.csv" "$metadata/prompt_token_lengths.png" \
        -- python preprocessing/02_analyze_prompt_consistency.py "${source[@]}" ${tokenizer[@]+"${tokenizer[@]}"}
    step 03_filter --after 01_prompts --outputs "$metadata/image_paths_clean.json" "$metadata/image_prompts_clean.json" \
        -- python preprocessing/03_filter_valid_identities.py "${source[@]}"
    step 04_structured_prompts --after 00_prepare --outputs "$metadata/image_prompts_cleaned_for_v4.json" \
        -- python preprocessing/04_generate_structured_prompts_for_v4.py "${source[@]}" ${tokenizer[@]+"${tokenizer[@]}"}
    step 05_splits --after 00_prepare --outputs "$metadata/image_splits.json" \
        -- python preprocessing/05_make_retrieval_splits.py "${source[@]}"
}

stage0() { # weights of a tiny model
    local folder=model/stage0_pretrain options=(--model "$model" --seed "$seed" --device "$device")
    if [ $force = yes ]; then options+=(--force); fi
    if [ $smoke = yes ]; then options+=(--smoke --save_path "$folder/checkpoints$apart" --log_dir "$folder/logs$apart"); fi
    step 10_stage0_pretrain --inputs "$folder/*.py" --outputs "$folder/checkpoints$apart/${model}_*.pth" \
        -- python $folder/pretrain_small_clip.py "${options[@]}"
    weights+=(--pretrained "$(made_by 10_stage0_pretrain '*.pth')")
    start+=("${weights[@]:2}")
}

stage1() { # zero-shot
    local folder=model/stage1_zeroshot
    step 20_stage1_zeroshot --after 04_structured_prompts 05_splits 10_stage0_pretrain --inputs "$folder/*.py" \
        --outputs "results$apart/${name}_stage1_*/metrics.json" --appends "results$apart/summary.csv" \
        -- python $folder/evaluate_clip_zeroshot.py "${evaluating[@]}" "${start[@]}"
}

stage2() { # image encoder
    local folder=model/stage2_img_encoder_finetune
    local options=("${on_data[@]}" "${start[@]}" ${recipe[@]+"${recipe[@]}"} ${encoder_recipe[@]+"${encoder_recipe[@]}"} "${fit[@]}")
    if [ $smoke = yes ]; then options+=(--save_path "$folder/checkpoints$apart" --log_dir "$folder/logs$apart"); fi
    step 30_stage2_train --after 03_filter 04_structured_prompts 10_stage0_pretrain --inputs "$folder/*.py" \
        --outputs "$folder/checkpoints$apart/*_BEST.pth" \
        -- python $folder/train_clip_img_encoder_finetune.py "${options[@]}"
    step 31_stage2_evaluate --after 30_stage2_train 05_splits --inputs "$folder/*.py" \
        --outputs "results$apart/${name}_stage2_*/metrics.json" --appends "results$apart/summary.csv" \
        -- python $folder/eval_clip_img_encoder.py "${evaluating[@]}" --ckpt "$(made_by 30_stage2_train '*_BEST.pth')"
}

stage3() { # both encoders, from the checkpoint of stage 2
    local from
    from=$(made_by 30_stage2_train '*_BEST.pth')
    if [ -z "$from" ] && [ -e "$logs/30_stage2_train.json" ]; then
        echo "note: stage 2 was trained on other photos, splits or weights than there are now: it is trained again"
        stage2
        from=$(made_by 30_stage2_train '*_BEST.pth')
    fi
    if [ -z "$from" ]; then echo "note: stage 2 has not been run here; stage 3 starts from the pretrained weights"; fi
    if [ "$variant" = v3 ]; then
        train_joint v2 "$from" 30_stage2_train
        from=$(made_by 40_stage3_v2_train '*_BEST.pth')
        train_joint v3 "$from" 40_stage3_v2_train
    else
        train_joint "$variant" "$from" 30_stage2_train
    fi
    step "41_stage3_${variant}_evaluate" --after "40_stage3_${variant}_train" 05_splits \
        --inputs "model/stage3_joint_img_text_finetune/*.py" \
        --outputs "results$apart/${name}_stage3_*/metrics.json" --appends "results$apart/summary.csv" \
        -- python model/stage3_joint_img_text_finetune/eval_clip_joint.py "${evaluating[@]}" --variant "$variant" \
        --ckpt "$(made_by "40_stage3_${variant}_train" '*_BEST.pth')"
}

train_joint() { # VARIANT CHECKPOINT_TO_START_FROM STEP_THAT_MADE_IT
    local folder=model/stage3_joint_img_text_finetune
    local options=("${on_data[@]}" "${start[@]}" ${recipe[@]+"${recipe[@]}"} ${joint_recipe[@]+"${joint_recipe[@]}"} "${fit[@]}")
    if [ "$1" = v4 ]; then options+=(${v4_recipe[@]+"${v4_recipe[@]}"}); fi
    if [ -n "$2" ]; then options+=(--init_ckpt "$2"); fi
    if [ $smoke = yes ]; then options+=(--save_path "$folder/checkpoints$apart" --log_dir "$folder/logs$apart"); fi
    step "40_stage3_$1_train" --after 03_filter 04_structured_prompts 10_stage0_pretrain "$3" --inputs "$folder/*.py" \
        --outputs "$folder/checkpoints$apart/*_BEST.pth" \
        -- python $folder/train_clip_joint_encoders.py --variant "$1" "${options[@]}"
}

stage4() { # an image encoder to the frozen text encoder
    local folder=model/stage4_frozen_text_alignment captions_name=${captions}_captions where=() small=()
    local on_captions=(--dataset "$captions") options=(--device "$device" "${weights[@]}")
    if [ -n "$captions_root" ]; then on_captions+=(--data_root "$captions_root"); fi
    if [ -n "$captions_val" ]; then on_captions+=(--num_val "$captions_val"); fi
    if [ -n "$captions_test" ]; then on_captions+=(--num_test "$captions_test"); fi
    # few photos, of products, which have no left and right
    if [ "$captions" = grocery ]; then
        options+=(--epochs 30 --batch_size 128 --head_norm none --min_crop 0.5 --flip 0.5)
    fi
    if [ $smoke = yes ]; then
        captions_name=${captions_name}_smoke small=(--smoke)
        where=(--save_path "$folder/checkpoints$apart" --log_dir "$folder/logs$apart")
    fi
    local asked_force=$force
    if [ "$captions" != synthetic ]; then force=yes; fi # quick where nothing has changed: it looks at the raw files
    step 50_stage4_captions --inputs "$folder/*.py" --outputs "metadata/$captions_name/captions.json" \
        -- python $folder/prepare_captions.py "${on_captions[@]}" ${small[@]+"${small[@]}"}
    force=$asked_force
    step 51_stage4_train --after 50_stage4_captions 10_stage0_pretrain --inputs "$folder/*.py" \
        --outputs "$folder/checkpoints$apart/*_BEST.pth" "$folder/checkpoints$apart/*_LINEAR.pth" \
        -- python $folder/train_frozen_text_alignment.py "${on_captions[@]}" "${options[@]}" "${training[@]}" \
        ${where[@]+"${where[@]}"}
    step 52_stage4_evaluate --after 51_stage4_train --inputs "$folder/*.py" \
        --outputs "results$apart/${captions_name}_stage4_*/metrics.json" \
        -- python $folder/eval_frozen_text_alignment.py --dataset "$captions" --device "$device" \
        --results_dir "results$apart" --ckpt "$(made_by 51_stage4_train '*_BEST.pth')"
}

stage5() { # two GANs around the frozen CLIP, and an unconditional one to compare with
    local folder=model/stage5_text_image_gan config=() options=(--device "$device" --seed "$seed" "${weights[@]}")
    local where=(--results_dir "results$apart")
    # also on a machine with a GPU, whose defaults are for ViT-B/32 and large photos
    case $model in
        tiny-*) config=("$folder/config/small.yaml") ;;
        ViT-B/32 | ViT-B-32) ;;
        *) config=("$folder/config/any_clip.yaml") ;;
    esac
    if [ -n "$faces" ]; then options+=(--dataset "$faces"); fi
    if [ -n "$epochs" ]; then options+=(--img2text.epochs "$epochs" --text2img.epochs "$epochs"); fi
    if [ $smoke = yes ]; then
        options+=(--smoke)
        where+=(--classifier_dir "$folder/checkpoints$apart" --classifier_epochs 1)
    fi
    local inputs=(--inputs "$folder/*.py" "$folder/config/*.yaml")
    local generators="$folder/checkpoints$apart/text_image_gan_*/text2img_generator_*.pth"
    step 60_stage5_train --after 10_stage0_pretrain "${inputs[@]}" --outputs "$generators" \
        -- python $folder/train.py "${options[@]}" ${config[@]+--config "${config[@]}"}
    step 61_stage5_baseline --after 10_stage0_pretrain "${inputs[@]}" --outputs "$generators" \
        -- python $folder/train.py "${options[@]}" --gans text2img \
        --config ${config[@]+"${config[@]}"} "$folder/config/plain.yaml"
    step 62_stage5_evaluate --after 60_stage5_train 61_stage5_baseline --inputs "$folder/*.py" \
        --outputs "results$apart/*_stage5_*/metrics.json" \
        -- python $folder/evaluate.py --device "$device" "${where[@]}" \
        --run_dir "$(dirname "$(made_by 60_stage5_train '*text2img_generator_*.pth')")" \
        --baseline_dir "$(dirname "$(made_by 61_stage5_baseline '*text2img_generator_*.pth')")"
}

SECONDS=0
identities=no # whether a stage is wanted that finds them again
if wanted 1 || wanted 2 || wanted 3; then identities=yes; fi
if [ $identities = yes ]; then prepare_data; fi
if [ $makes_weights = yes ]; then stage0; fi
for ((stage = 1; stage <= last_stage; stage++)); do
    if wanted $stage; then "stage$stage"; fi
done
if [ $identities = yes ]; then
    force=yes step 90_report -- python -m clipfh.reports.results_table --results_dir "results$apart" # always: the table ends the run
fi
echo "finished in $((SECONDS / 60)) min $((SECONDS % 60)) s; logs: $logs"
