//! XML in the making: elements with their attributes, indented, values escaped (XML 1.0, sections 2.2 to 2.4).

use std::fmt::Write as _;

/// Elements that were written so far. The first value that XML cannot hold is kept until [`Xml::finish`].
#[derive(Default)]
pub(crate) struct Xml {
    written: String,
    depth: usize,
    wrong: Option<String>,
}

impl Xml {
    /// Begins an element.
    pub(crate) fn open(&mut self, name: &str, attributes: &[(&str, &str)]) -> &mut Xml {
        self.tag(name, attributes, ">\n");
        self.depth += 1;
        self
    }

    /// Ends an element.
    pub(crate) fn close(&mut self, name: &str) -> &mut Xml {
        self.depth -= 1;
        self.indent();
        let _ = writeln!(self.written, "</{name}>");
        self
    }

    /// An element without content.
    pub(crate) fn leaf(&mut self, name: &str, attributes: &[(&str, &str)]) -> &mut Xml {
        self.tag(name, attributes, "/>\n");
        self
    }

    /// An element with nothing but text.
    pub(crate) fn text(&mut self, name: &str, attributes: &[(&str, &str)], text: &str) -> &mut Xml {
        self.tag(name, attributes, ">");
        self.value(text);
        let _ = writeln!(self.written, "</{name}>");
        self
    }

    /// The whole, or the value that cannot stand in it.
    pub(crate) fn finish(self) -> Result<String, String> {
        self.wrong.map_or(Ok(self.written), Err)
    }

    fn tag(&mut self, name: &str, attributes: &[(&str, &str)], end: &str) {
        self.indent();
        let _ = write!(self.written, "<{name}");
        for (attribute, value) in attributes {
            let _ = write!(self.written, " {attribute}='");
            self.value(value);
            self.written.push('\'');
        }
        self.written.push_str(end);
    }

    fn value(&mut self, value: &str) {
        for character in value.chars() {
            match character {
                '&' => self.written.push_str("&amp;"),
                '<' => self.written.push_str("&lt;"),
                '>' => self.written.push_str("&gt;"),
                '\'' => self.written.push_str("&apos;"),
                '"' => self.written.push_str("&quot;"),
                '\0'..=' ' if character != ' ' => self.wrong = Some(value.to_owned()),
                '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => self.wrong = Some(value.to_owned()),
                _ => self.written.push(character),
            }
        }
    }

    fn indent(&mut self) {
        self.written.extend(std::iter::repeat_n(' ', 2 * self.depth));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_values() {
        let mut xml = Xml::default();
        xml.open("a", &[("b", "'/><c d='")]).text("e", &[], "</e>&amp;\"ü").close("a");
        let expected = "<a b='&apos;/&gt;&lt;c d=&apos;'>\n  <e>&lt;/e&gt;&amp;amp;&quot;ü</e>\n</a>\n";
        assert_eq!(xml.finish().unwrap(), expected);
    }

    #[test]
    fn characters_that_xml_cannot_hold_are_found_wherever_they_are() {
        for wrong in ["\0", "a\nb", "\t", "\u{1b}", "\u{85}", "\u{ffff}"] {
            let mut xml = Xml::default();
            xml.leaf("a", &[("b", wrong)]).leaf("c", &[]);
            assert_eq!(xml.finish().unwrap_err(), wrong);
            let mut xml = Xml::default();
            xml.text("a", &[], wrong);
            assert!(xml.finish().is_err());
        }
    }
}
