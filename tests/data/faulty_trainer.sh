#!/bin/sh
# A trainer that misbehaves as a real one never should. The base model's name says how.
read -r spec
case "$spec" in
*'"base_model_id":"garbles"'*)
    echo 'Loading weights...'
    exec sleep 60
    ;;
*'"base_model_id":"endless-line"'*)
    head -c 3000000 /dev/zero | tr '\0' 'x'
    exec sleep 60
    ;;
*'"base_model_id":"killed"'*)
    echo '{"type":"note","level":"info","message":"about to be killed","data":null}'
    echo 'the last words' >&2
    kill -9 $$
    ;;
*'"base_model_id":"deaf"'*)
    echo '{"type":"note","level":"info","message":"not listening","data":null}'
    exec sleep 60
    ;;
*'"base_model_id":"hangs"'*)
    echo '{"type":"step","metrics":{"step":1,"train_loss":1,"train_mean_token_accuracy":0,"learning_rate":1,"epoch":1,"grad_norm":1},"tokens_per_second":1,"seconds_left":9}'
    while sleep 0.2; do
        echo '{"type":"pulse","asked":1}'
    done
    ;;
*'"base_model_id":"lingers"'*)
    echo '{"type":"failed","error":{"code":"nan_loss","message":"the loss is NaN","param":null}}'
    exec sleep 60
    ;;
*'"base_model_id":"empty-handed"'*)
    echo '{"type":"finished","directory":"/nonexistent","metrics_csv":"/nonexistent/metrics.csv","report":"/nonexistent/report.json","certificate":"/nonexistent/certificate.json","trained_steps":1,"trained_tokens":1}'
    ;;
*)
    echo "no such fault: $spec" >&2
    exit 3
    ;;
esac
