-- The step whose numbers an event holds, so that a job's metrics are found by step.
ALTER TABLE events ADD COLUMN step INTEGER;

UPDATE events SET step = json_extract(data, '$.step') WHERE kind = 'metrics';

CREATE INDEX events_by_step ON events (job_id, step, sequence) WHERE step IS NOT NULL;
