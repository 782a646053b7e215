-- What a job's request says of the chat template: its text or name, its variables, its date. JSON; null
-- where it says nothing.
ALTER TABLE jobs ADD COLUMN chat_template TEXT;
