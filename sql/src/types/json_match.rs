//! What `jsonb` operators say of two values: containment, keys, concatenation, removal.
//!
//! Leaves out paths (`json_path`). Source: PostgreSQL 15, `jsonb_util.c` and `jsonfuncs.c`. Pure.

use super::error::ValueError;
use super::json_node::{Node, ordered, sort_key};
use millstream_catalog::model::SqlState;

fn is_container(node: &Node<'_>) -> bool {
    matches!(node, Node::Array(_) | Node::Object(_))
}

fn is_equal(left: &Node<'_>, right: &Node<'_>) -> Result<bool, ValueError> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    sort_key(left, &mut a)?;
    sort_key(right, &mut b)?;
    Ok(a == b)
}

/// `value @> part`. An array contains a scalar that is one of its elements.
pub(crate) fn contains(value: &Node<'_>, part: &Node<'_>) -> Result<bool, ValueError> {
    match (value, part) {
        (Node::Array(items), scalar) if !is_container(scalar) => has_item(items, scalar),
        _ => contains_inner(value, part),
    }
}

fn contains_inner(value: &Node<'_>, part: &Node<'_>) -> Result<bool, ValueError> {
    match (value, part) {
        (Node::Object(entries), Node::Object(parts)) => {
            for (key, part) in ordered(parts) {
                let found = entries.iter().rev().find(|(name, _)| name == key);
                if !found.map_or(Ok(false), |(_, value)| contains_inner(value, part))? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Node::Array(items), Node::Array(parts)) => {
            for part in parts {
                if !has_item(items, part)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (value, part) if is_container(value) || is_container(part) => Ok(false),
        (value, part) => is_equal(value, part),
    }
}

fn has_item(items: &[Node<'_>], part: &Node<'_>) -> Result<bool, ValueError> {
    for item in items {
        if is_container(item) == is_container(part) && contains_inner(item, part)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `value ? key`: a key of an object, an element of an array, or the text itself.
pub(crate) fn has_key(value: &Node<'_>, key: &[u8]) -> bool {
    let is_key = |node: &Node<'_>| matches!(node, Node::String(text) if text == key);
    match value {
        Node::Object(entries) => entries.iter().any(|(name, _)| name == key),
        Node::Array(items) => items.iter().any(is_key),
        scalar => is_key(scalar),
    }
}

/// `left || right`: objects are merged, anything else becomes one array.
pub(crate) fn concatenate<'a>(left: Node<'a>, right: Node<'a>) -> Node<'a> {
    match (left, right) {
        (Node::Object(mut left), Node::Object(right)) => {
            left.extend(right);
            Node::Object(left)
        }
        (left, right) => {
            let mut items = items_of(left);
            items.extend(items_of(right));
            Node::Array(items)
        }
    }
}

fn items_of(node: Node<'_>) -> Vec<Node<'_>> {
    match node {
        Node::Array(items) => items,
        other => vec![other],
    }
}

fn cannot_delete(what: &str) -> ValueError {
    ValueError::new(SqlState::InvalidParameterValue, format!("cannot delete {what}"))
}

/// `value - key`: without this key, or without the elements that are this text.
///
/// # Errors
/// 22023 for a scalar.
pub(crate) fn without_key(value: &mut Node<'_>, key: &[u8]) -> Result<(), ValueError> {
    match value {
        Node::Object(entries) => entries.retain(|(name, _)| name != key),
        Node::Array(items) => items.retain(|item| !matches!(item, Node::String(text) if text == key)),
        _ => return Err(cannot_delete("from scalar")),
    }
    Ok(())
}

/// `value - index`: without this element, counted from 0, or from the end when negative.
///
/// # Errors
/// 22023 for what is no array.
pub(crate) fn without_index(value: &mut Node<'_>, index: i64) -> Result<(), ValueError> {
    match value {
        Node::Array(items) => {
            let at = if index < 0 { index + items.len() as i64 } else { index };
            if let Some(at) = usize::try_from(at).ok().filter(|at| *at < items.len()) {
                items.remove(at);
            }
            Ok(())
        }
        Node::Object(_) => Err(cannot_delete("from object using integer index")),
        _ => Err(cannot_delete("from scalar")),
    }
}
