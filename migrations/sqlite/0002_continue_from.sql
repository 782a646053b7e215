-- Jobs that continue from a fine-tuned model: the name of that model. `model` stays the base model's id.

ALTER TABLE jobs ADD COLUMN continue_from TEXT;

CREATE INDEX jobs_by_continue_from ON jobs (continue_from) WHERE continue_from IS NOT NULL;
