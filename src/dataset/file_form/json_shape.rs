//! The shape of a file that begins with `[` or `{`: JSONL, one list, or objects over several lines. Brackets,
//! texts and ends of lines are followed; names and values are not looked at.

use super::fault::FileFault;

/// The end of a line since the last character that is no white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    None,
    /// CR without LF.
    Cr,
    Lf,
}

/// Follows a file from its first bracket on.
#[derive(Debug)]
pub(in crate::dataset) struct JsonShape {
    is_list: bool,
    depth: u64,
    is_in_text: bool,
    is_escaped: bool,
    /// Whether a value has just ended, so that only a comma, a colon or a closing bracket can follow.
    is_after_value: bool,
    last_break: Break,
    /// Whether no character has come after the first bracket yet.
    is_first: bool,
    /// Elements of the list, or objects that were complete.
    values: u64,
    /// Whether the outermost value that is being read goes over several lines.
    is_spread: bool,
    fault: Fault,
    is_over: bool,
}

/// Whether the file is certainly no JSONL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Shape,
    CarriageReturns,
}

impl JsonShape {
    /// Of a file whose first character is this one, which is fed as well.
    pub(super) fn of(first: u8) -> Self {
        Self {
            is_list: first == b'[',
            depth: 0,
            is_in_text: false,
            is_escaped: false,
            is_after_value: false,
            last_break: Break::None,
            is_first: false,
            values: 0,
            is_spread: false,
            fault: Fault::None,
            is_over: false,
        }
    }

    /// Takes the next bytes; false when the file is JSONL, or lines with problems of their own.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if self.is_over {
                return true;
            }
            if !self.take(*byte) {
                return false;
            }
        }
        true
    }

    /// Whether the file is certainly no JSONL.
    pub(super) fn is_fault(&self) -> bool {
        self.fault != Fault::None
    }

    /// What the whole file is.
    pub(super) fn finish(&self) -> Option<FileFault> {
        match (self.fault, self.is_list) {
            (Fault::CarriageReturns, _) => Some(FileFault::CarriageReturns),
            (_, true) => {
                let (elements, is_closed) = (self.values, self.depth == 0);
                Some(FileFault::List { elements, is_closed })
            }
            (Fault::Shape, false) => Some(FileFault::SpreadObjects { objects: self.values }),
            (Fault::None, false) => None,
        }
    }

    /// Takes a byte; false when the file is made of lines.
    fn take(&mut self, byte: u8) -> bool {
        if self.is_in_text {
            return self.take_of_text(byte);
        }
        match byte {
            b'\n' => self.last_break = Break::Lf,
            b'\r' if self.last_break == Break::None => self.last_break = Break::Cr,
            b' ' | b'\t' | b'\r' => {}
            _ => return self.take_token(byte),
        }
        // A list that does not end where its line ends; an object of which the line has the bracket alone.
        let is_break = self.last_break != Break::None;
        if is_break && self.depth > 0 && (self.is_list || self.is_first) {
            self.fault = Fault::Shape;
        }
        true
    }

    /// A byte inside of a text. JSON has no end of line there: the line ends too early.
    fn take_of_text(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' => self.is_escaped = true,
            b'"' => {
                self.is_in_text = false;
                self.is_after_value = true;
            }
            b'\n' | b'\r' if self.is_list => self.fault = Fault::Shape,
            b'\n' | b'\r' => return self.is_fault(),
            _ => {}
        }
        true
    }

    /// A character outside of texts that is no white space.
    fn take_token(&mut self, byte: u8) -> bool {
        let last_break = std::mem::replace(&mut self.last_break, Break::None);
        if self.depth == 0 && self.values + u64::from(self.is_after_value) > 0 {
            match self.after_outermost(byte, last_break) {
                Next::Value => {}
                Next::Lines => return false,
                Next::Over => {
                    self.is_over = true;
                    return true;
                }
            }
        }
        self.is_spread |= self.depth > 0 && last_break != Break::None;
        let begins_value = !matches!(byte, b',' | b':' | b']' | b'}');
        if begins_value && self.is_after_value && matches!(byte, b'{' | b'[' | b'"') {
            // Two values without a comma between: the line of the first one ends too early.
            if !self.is_list && !self.is_fault() {
                return false;
            }
        }
        if begins_value && !self.is_after_value && self.is_list && self.depth == 1 {
            self.values += 1;
        }
        self.is_first = self.depth == 0;
        match byte {
            b'{' | b'[' => {
                self.depth += 1;
                self.is_after_value = false;
            }
            b'}' | b']' => return self.close(),
            b',' | b':' => self.is_after_value = false,
            b'"' => self.is_in_text = true,
            _ => self.is_after_value = true,
        }
        true
    }

    fn close(&mut self) -> bool {
        if self.depth == 0 {
            return self.is_fault();
        }
        self.depth -= 1;
        self.is_after_value = true;
        if self.depth == 0 && !self.is_list {
            self.values += 1;
            if self.is_spread {
                self.fault = Fault::Shape;
            }
            self.is_spread = false;
        }
        true
    }

    /// What a character behind the end of an outermost value means.
    fn after_outermost(&mut self, byte: u8, last_break: Break) -> Next {
        self.is_after_value = false;
        match (self.fault, last_break) {
            // The list is over, and something follows.
            (Fault::Shape, _) if self.is_list => Next::Over,
            (Fault::Shape, _) => Next::Value,
            (Fault::CarriageReturns, _) => Next::Over,
            (Fault::None, Break::Cr) if byte == b'{' && !self.is_list => {
                self.fault = Fault::CarriageReturns;
                Next::Over
            }
            (Fault::None, _) => Next::Lines,
        }
    }
}

/// What follows an outermost value.
enum Next {
    /// Another value of the same shape.
    Value,
    /// Lines: the file is JSONL.
    Lines,
    /// Nothing that matters.
    Over,
}
