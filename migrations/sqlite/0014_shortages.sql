-- Jobs that wait for what others hold: memory, room on the disk, file descriptors. They stay queued, and are
-- claimed again when their wait is over.
ALTER TABLE jobs ADD COLUMN short_since INTEGER;
ALTER TABLE jobs ADD COLUMN short_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN waits_until INTEGER CHECK (waits_until IS NULL OR short_since IS NOT NULL);
