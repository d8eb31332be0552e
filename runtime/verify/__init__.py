"""An artifact in its own runtime against the model it was made from: `dsconv verify`.

run              a request from beginning to end: open, measure, check, judge
files            hashes and signature, which need no reference
comparison       what is compared, on which windows of tokens
measure          teacher-forced figures over the windows, with the worst tokens
metrics          how far one model's predictions are from another's, token by token
reference        what the reference predicts: streamed from a checkpoint, or asked of a session
kept_logits      the small part of a reference's logits that is worth keeping
reference_cache  that part on the disk, so that a second run needs no reference
checks           what is looked at beside the figures, an object each
weights          the check of the weights; what it finds is kept
free_running     what both write by themselves
tasks            questions with one right answer
circumstances    where the figures come from: hashes, versions, machine
thresholds       what may have a limit, and who sets it
grade            how good: faithful, good, degraded, broken; where the limits lie
judge            figures against limits and against an earlier verdict
cures            what would help one that fails, in its situation
verdict          everything that was found, as plain data
verdict_json     the same as JSON
findings         what is wrong apart from the figures
"""
