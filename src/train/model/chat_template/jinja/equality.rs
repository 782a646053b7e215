//! `==` of values.

use std::rc::Rc;

use super::budget;
use super::value::Value;

impl Value {
    /// `==`. Once the budget is spent nothing is equal, and the rendering fails.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        budget::count(1);
        if budget::is_spent() {
            return false;
        }
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Text(a) | Self::Markup(a), Self::Text(b) | Self::Markup(b)) => {
                if a.len() == b.len() {
                    budget::count_text(a.len());
                }
                a == b
            }
            (Self::Float(a), Self::Float(b)) => a == b,
            (Self::Float(float), number) | (number, Self::Float(float)) => {
                number.as_integer().is_some_and(|whole| {
                    whole.compare_float(*float).is_some_and(|order| order.is_eq())
                })
            }
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                Rc::ptr_eq(a, b)
                    || (a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b)))
            }
            (Self::Dict(a), Self::Dict(b)) => {
                let same = |(key, value): (&Self, &Self)| {
                    b.get(key).is_ok_and(|other| other.is_some_and(|other| value.equals(other)))
                };
                Rc::ptr_eq(a, b) || (a.len() == b.len() && a.iter().all(same))
            }
            (Self::Object(a), Self::Object(b)) => {
                std::ptr::addr_eq(Rc::as_ptr(a), Rc::as_ptr(b)) || (***a).equals(&***b)
            }
            _ => match (self.as_integer(), other.as_integer()) {
                (Some(a), Some(b)) => a == b,
                _ => false,
            },
        }
    }

    /// Whether both are one object, as far as that can be told: small values are what they say.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => Rc::ptr_eq(a, b),
            (Self::Dict(a), Self::Dict(b)) => Rc::ptr_eq(a, b),
            (a, b) => a.type_name() == b.type_name() && a.equals(b),
        }
    }
}
